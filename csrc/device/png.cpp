// PNG by libpng, where the build found it. Errors leave by longjmp: nothing in read() has a destructor.
#include "device/images.h"

#ifdef SPARCL_IMAGES
#include <png.h>

#include <csetjmp>
#include <cstring>

namespace sparcl {
namespace decoding {
namespace {

constexpr png_alloc_size_t kMostChunk = 8 << 20;
constexpr png_uint_32 kMostChunks = 1000, kMostSide = 1 << 26;

struct Reader {
  Source source;
  size_t at = 0;
  char error[80] = "";
  png_structp png = nullptr;
  png_infop info = nullptr;
  png_infop end = nullptr;
  long height = 0, width = 0, channels = 0;
  std::vector<uint8_t> pixels;
  std::vector<png_bytep> rows;

  explicit Reader(const Source& from) : source(from) {}
  ~Reader() { png_destroy_read_struct(&png, &info, &end); }
  Reader(const Reader&) = delete;
};

void fail(png_structp png, png_const_charp message) {
  Reader& reader = *static_cast<Reader*>(png_get_error_ptr(png));
  std::strncpy(reader.error, message, sizeof reader.error - 1);
  png_longjmp(png, 1);
}
void ignore(png_structp, png_const_charp) {}

void take_bytes(png_structp png, png_bytep to, size_t count) {
  Reader& reader = *static_cast<Reader*>(png_get_io_ptr(png));
  if (reader.source.size - reader.at < count) png_error(png, "it ends too early");
  std::memcpy(to, reader.source.bytes + reader.at, count);
  reader.at += count;
}

bool read_header(Reader& r) {
  if (setjmp(png_jmpbuf(r.png))) return false;
  png_set_user_limits(r.png, kMostSide, kMostSide);
  png_set_chunk_malloc_max(r.png, kMostChunk);
  png_set_chunk_cache_max(r.png, kMostChunks);
  png_set_read_fn(r.png, &r, take_bytes);
  png_read_info(r.png, r.info);
  r.height = png_get_image_height(r.png, r.info);
  r.width = png_get_image_width(r.png, r.info);
  return true;
}

// To 8 bits a value, without alpha; of a palette the indices.
bool prepare(Reader& r) {
  if (setjmp(png_jmpbuf(r.png))) return false;
  const int type = png_get_color_type(r.png, r.info);
  png_set_strip_16(r.png);
  png_set_strip_alpha(r.png);
  if (type == PNG_COLOR_TYPE_GRAY)
    png_set_expand_gray_1_2_4_to_8(r.png);
  else
    png_set_packing(r.png);
  png_set_interlace_handling(r.png);
  png_read_update_info(r.png, r.info);
  r.channels = png_get_channels(r.png, r.info);
  if (png_get_bit_depth(r.png, r.info) != 8 || png_get_rowbytes(r.png, r.info) != static_cast<size_t>(r.width * r.channels))
    png_error(r.png, "its kind of pixels is not known");
  return true;
}

bool read_pixels(Reader& r) {
  if (setjmp(png_jmpbuf(r.png))) return false;
  png_read_image(r.png, r.rows.data());
  png_read_end(r.png, r.end);
  return true;
}

// The hex digits behind three lines of a text that ImageMagick wrote; damaged ones are no EXIF, as in Pillow.
std::string from_hex(const char* text, size_t size) {
  static const char kDamaged[] = "?";
  std::string bytes;
  size_t lines = 0;
  int high = -1;
  for (size_t i = 0; i < size; ++i) {
    const char c = text[i];
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (c == '\n') ++lines;
    if (lines < 3 || c == ' ' || (c >= '\t' && c <= '\r')) continue;
    if (digit < 0) return kDamaged;
    if (high < 0) {
      high = digit;
    } else {
      bytes.push_back(static_cast<char>(16 * high + digit));
      high = -1;
    }
  }
  return high < 0 ? bytes : kDamaged;
}

void take_notes(const Reader& r, png_infop info, Notes& notes) {
  png_uint_32 size = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(r.png, info, &size, &exif)) notes.exif.assign(reinterpret_cast<const char*>(exif), size);
  png_textp text = nullptr;
  int texts = 0;
  png_get_text(r.png, info, &text, &texts);
  for (int i = 0; i < texts; ++i) {
    const size_t length = text[i].compression > 0 ? text[i].itxt_length : text[i].text_length;
    if (!text[i].text) continue;
    if (!std::strcmp(text[i].key, "XML:com.adobe.xmp")) notes.xmp.assign(text[i].text, length);
    if (!std::strcmp(text[i].key, "Raw profile type exif") && notes.exif.empty()) notes.exif = from_hex(text[i].text, length);
  }
}

// An index without an entry is black, as in Pillow.
void look_up(const Reader& r, Image& image) {
  png_colorp palette = nullptr;
  int colours = 0;
  png_get_PLTE(r.png, r.info, &palette, &colours);
  for (size_t p = 0; p < r.pixels.size(); ++p) {
    const uint8_t index = r.pixels[p];
    const png_color colour = index < colours ? palette[index] : png_color{0, 0, 0};
    const uint8_t rgb[] = {colour.red, colour.green, colour.blue};
    std::memcpy(image.rgb.data() + 3 * p, rgb, 3);
  }
}

}  // namespace

Image read_png(const Source& source, Notes& notes) {
  Reader r(source);
  r.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &r, fail, ignore);
  if (r.png) r.info = png_create_info_struct(r.png);
  if (r.info) r.end = png_create_info_struct(r.png);
  if (!r.end) throw std::bad_alloc();
  if (!read_header(r)) refuse(source, r.error);
  check_size(source, r.height, r.width);
  if (!prepare(r)) refuse(source, r.error);
  r.pixels.resize(static_cast<size_t>(r.height * r.width * r.channels));
  for (long y = 0; y < r.height; ++y) r.rows.push_back(r.pixels.data() + y * r.width * r.channels);
  if (!read_pixels(r)) refuse(source, r.error);
  take_notes(r, r.info, notes);
  take_notes(r, r.end, notes);
  Image image{r.height, r.width, {}};
  if (r.channels == 3) {
    image.rgb = std::move(r.pixels);
    return image;
  }
  image.rgb.resize(3 * r.pixels.size());
  if (png_get_color_type(r.png, r.info) == PNG_COLOR_TYPE_PALETTE)
    look_up(r, image);
  else
    for (size_t p = 0; p < r.pixels.size(); ++p) std::memset(image.rgb.data() + 3 * p, r.pixels[p], 3);
  return image;
}

}  // namespace decoding
}  // namespace sparcl
#endif
