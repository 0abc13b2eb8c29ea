// JPEG by libjpeg-turbo, where the build found it: the slow exact DCT and smooth upsampling, its defaults, as in Pillow. Errors leave
// by longjmp: nothing in the functions that set it has a destructor.
#include "device/images.h"

#ifdef SPARCL_IMAGES
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include <jpeglib.h>
#include <jerror.h>

namespace sparcl {
namespace decoding {
namespace {

constexpr int kMostScans = 100;  // a progressive file has some ten; each costs a pass over the image

struct Reader {
  Source source;
  jpeg_decompress_struct file{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr bytes{};
  jpeg_progress_mgr progress{};
  jmp_buf away{};
  char error[JMSG_LENGTH_MAX] = "";
  bool no_memory = false;
  std::vector<uint8_t> pixels;

  explicit Reader(const Source& from) : source(from) {}
  ~Reader() { jpeg_destroy_decompress(&file); }
  Reader(const Reader&) = delete;
};

[[noreturn]] void leave(j_common_ptr file, const char* why) {
  Reader& reader = *static_cast<Reader*>(file->client_data);
  std::snprintf(reader.error, sizeof reader.error, "%s", why);
  longjmp(reader.away, 1);
}

void fail(j_common_ptr file) {
  Reader& reader = *static_cast<Reader*>(file->client_data);
  reader.no_memory = file->err->msg_code == JERR_OUT_OF_MEMORY;
  char why[JMSG_LENGTH_MAX];
  file->err->format_message(file, why);
  leave(file, why);
}
void ignore(j_common_ptr) {}
void ignore_level(j_common_ptr, int) {}  // warnings: cameras write odd bytes, and Pillow takes them
void nothing(j_decompress_ptr) {}
boolean no_more(j_decompress_ptr file) { leave(reinterpret_cast<j_common_ptr>(file), "it ends too early"); }

void skip(j_decompress_ptr file, long count) {
  if (count <= 0) return;
  if (static_cast<size_t>(count) > file->src->bytes_in_buffer) no_more(file);
  file->src->next_input_byte += count;
  file->src->bytes_in_buffer -= static_cast<size_t>(count);
}

void count_scans(j_common_ptr file) {
  if (reinterpret_cast<j_decompress_ptr>(file)->input_scan_number > kMostScans) leave(file, "it has too many scans");
}

bool read_header(Reader& r) {
  if (setjmp(r.away)) return false;
  jpeg_create_decompress(&r.file);
  r.file.src = &r.bytes;
  r.file.progress = &r.progress;
  jpeg_save_markers(&r.file, JPEG_APP0 + 1, 0xffff);
  jpeg_read_header(&r.file, TRUE);
  const int parts = r.file.num_components;
  if (parts != 1 && parts != 3 && parts != 4) leave(reinterpret_cast<j_common_ptr>(&r.file), "it has neither 1, 3 nor 4 channels");
  r.file.out_color_space = parts == 1 ? JCS_GRAYSCALE : parts == 3 ? JCS_RGB : JCS_CMYK;
  return true;
}

bool read_pixels(Reader& r) {
  if (setjmp(r.away)) return false;
  jpeg_start_decompress(&r.file);
  const size_t row = static_cast<size_t>(r.file.output_width) * static_cast<size_t>(r.file.output_components);
  if (r.pixels.size() != row * r.file.output_height) leave(reinterpret_cast<j_common_ptr>(&r.file), "its kind of pixels is not known");
  while (r.file.output_scanline < r.file.output_height) {
    JSAMPROW at = r.pixels.data() + row * r.file.output_scanline;
    jpeg_read_scanlines(&r.file, &at, 1);
  }
  jpeg_finish_decompress(&r.file);
  return true;
}

void take_notes(const Reader& r, Notes& notes) {
  static const std::string kExif("Exif\0\0", 6), kXmp("http://ns.adobe.com/xap/1.0/\0", 29);
  for (jpeg_saved_marker_ptr marker = r.file.marker_list; marker; marker = marker->next) {
    const std::string data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.compare(0, kExif.size(), kExif) == 0) notes.exif += notes.exif.empty() ? data : data.substr(kExif.size());
    if (data.compare(0, kXmp.size(), kXmp) == 0) notes.xmp = data.substr(kXmp.size());
  }
}

// a * b / 255, rounded, as Pillow does it.
unsigned of_255(unsigned a, unsigned b) {
  const unsigned product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

// Inks are stored inverted, as Adobe does and Pillow expects of every file.
void from_inks(const std::vector<uint8_t>& inks, std::vector<uint8_t>& rgb) {
  for (size_t p = 0; p < inks.size() / 4; ++p)
    for (size_t c = 0; c < 3; ++c) {
      const unsigned left = inks[4 * p + 3], ink = 255u - inks[4 * p + c];
      rgb[3 * p + c] = static_cast<uint8_t>(left - of_255(ink, left));
    }
}

}  // namespace

Image read_jpeg(const Source& source, Notes& notes) {
  Reader r(source);
  r.file.err = jpeg_std_error(&r.errors);
  r.file.client_data = &r;
  r.errors.error_exit = fail;
  r.errors.output_message = ignore;
  r.errors.emit_message = ignore_level;
  r.bytes.next_input_byte = source.bytes;
  r.bytes.bytes_in_buffer = source.size;
  r.bytes.init_source = r.bytes.term_source = nothing;
  r.bytes.fill_input_buffer = no_more;
  r.bytes.skip_input_data = skip;
  r.bytes.resync_to_restart = jpeg_resync_to_restart;
  r.progress.progress_monitor = count_scans;
  const auto failed = [&] {
    if (r.no_memory) throw std::bad_alloc();
    refuse(source, r.error);
  };
  if (!read_header(r)) failed();
  const long height = r.file.image_height, width = r.file.image_width, parts = r.file.num_components;
  check_size(source, height, width);
  take_notes(r, notes);
  r.pixels.resize(static_cast<size_t>(height * width * parts));
  if (!read_pixels(r)) failed();
  Image image{height, width, {}};
  if (parts == 3) {
    image.rgb = std::move(r.pixels);
    return image;
  }
  image.rgb.resize(static_cast<size_t>(3 * height * width));
  if (parts == 4)
    from_inks(r.pixels, image.rgb);
  else
    for (size_t p = 0; p < r.pixels.size(); ++p) std::memset(image.rgb.data() + 3 * p, r.pixels[p], 3);
  return image;
}

}  // namespace decoding
}  // namespace sparcl
#endif
