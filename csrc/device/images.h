// Image files as the pixels that Python's reader (src/sparcl/streams/images.py) makes of them, to the byte. They may come from anyone:
// what would be too large is refused by what its header says, before anything is decoded.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace sparcl {

struct Image {
  long height = 0, width = 0;
  std::vector<uint8_t> rgb;  // [rows][columns][3]
};

// What this build reads, "PNG, JPEG, PPM, PGM", and, where that is not all, how to get the rest.
const char* image_formats();
const char* missing_formats();  // null where nothing is missing
bool is_image(const std::string& path);  // by its first bytes; false for what cannot be read

// An image file, upright as its EXIF says. Throws std::invalid_argument, one line: missing, damaged, truncated, too large, another format.
Image read_image(const std::string& path);
// Bilinear with antialiasing, as Pillow resizes.
Image resized(Image image, long height, long width);
// 1 channel: grey (ITU-R BT.601), as `sparcl predict`; 3: as they are. Appends [channels][rows][columns].
void append_channels(const Image& image, long channels, std::vector<uint8_t>& raw);

// What the formats' own files share.
namespace decoding {

struct Source {
  const uint8_t* bytes;
  size_t size;
  const std::string& name;
};
[[noreturn]] void refuse(const Source& source, const std::string& why);
void check_size(const Source& source, long height, long width);  // throws std::invalid_argument

struct Notes {
  std::string exif, xmp;  // as they lie in the file
};
int orientation_of(const Notes& notes);  // 1 to 8, EXIF's; 1 where nothing is said

Image read_png(const Source& source, Notes& notes);
Image read_jpeg(const Source& source, Notes& notes);

}  // namespace decoding
}  // namespace sparcl
