#include "device/images.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace sparcl {
namespace {

constexpr long kMostPixels = 64000000;  // of one image, as in Python
constexpr uint64_t kMostBytes = 256ull << 20, kFreeBytes = 64ull << 20, kMostGrowth = 1000;
constexpr unsigned kGrey[] = {299, 587, 114};  // thousandths of red, green and blue

std::vector<uint8_t> content_of(const std::string& path, size_t most) {
  const int file = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);  // a named pipe must not hang us
  const std::string why = std::strerror(errno);
  struct stat about {};
  if (file < 0 || fstat(file, &about) != 0) throw std::invalid_argument(path + " cannot be read: " + why);
  std::vector<uint8_t> content;
  std::string fault;
  const uint64_t size = static_cast<uint64_t>(about.st_size);
  if (!S_ISREG(about.st_mode))
    fault = " is not a regular file";
  else if (size > kMostBytes)
    fault = " has " + std::to_string(size) + " bytes: no image has";
  else
    try {
      content.resize(std::min<size_t>(size, most));
    } catch (...) {
      close(file);
      throw;
    }
  size_t at = 0;
  while (fault.empty() && at < content.size()) {
    const ssize_t n = read(file, content.data() + at, content.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      fault = " cannot be read";
    else
      at += static_cast<size_t>(n);
  }
  close(file);
  if (!fault.empty()) throw std::invalid_argument(path + fault);
  return content;
}

bool begins(const std::vector<uint8_t>& content, const char* with, size_t bytes) {
  return content.size() >= bytes && std::memcmp(content.data(), with, bytes) == 0;
}
bool is_png(const std::vector<uint8_t>& content) { return begins(content, "\x89PNG\r\n\x1a\n", 8); }
bool is_jpeg(const std::vector<uint8_t>& content) { return begins(content, "\xff\xd8\xff", 3); }
bool is_pnm(const std::vector<uint8_t>& content) { return begins(content, "P5", 2) || begins(content, "P6", 2); }

// A number of a PNM header, behind spaces and comments.
long header_number(const decoding::Source& s, size_t& at) {
  const auto space = [](uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  while (at < s.size && (space(s.bytes[at]) || s.bytes[at] == '#')) {
    const bool comment = s.bytes[at] == '#';
    do ++at;
    while (comment && at < s.size && s.bytes[at] != '\n' && s.bytes[at] != '\r');
  }
  long value = 0;
  const size_t first = at;
  for (; at < s.size && s.bytes[at] >= '0' && s.bytes[at] <= '9' && at - first < 9; ++at) value = 10 * value + (s.bytes[at] - '0');
  if (at == first || at == s.size || !space(s.bytes[at])) decoding::refuse(s, "its header is damaged");
  return value;
}

Image read_pnm(const decoding::Source& s) {
  const long channels = s.bytes[1] == '6' ? 3 : 1;
  size_t at = 2;
  const long width = header_number(s, at), height = header_number(s, at), most = header_number(s, at);
  if (most < 1 || most > 255) decoding::refuse(s, "its largest value is " + std::to_string(most) + ", and must be 1 to 255");
  decoding::check_size(s, height, width);
  ++at;
  const size_t pixels = static_cast<size_t>(height * width);
  if (s.size - at < pixels * static_cast<size_t>(channels)) decoding::refuse(s, "it ends too early");
  uint8_t scaled[256];  // as Pillow rounds: what lies in the middle to the even one
  for (int v = 0; v < 256; ++v) scaled[v] = static_cast<uint8_t>(std::min(255.0, std::nearbyint(v / static_cast<double>(most) * 255)));
  Image image{height, width, std::vector<uint8_t>(3 * pixels)};
  for (size_t p = 0; p < pixels; ++p)
    for (size_t c = 0; c < 3; ++c) image.rgb[3 * p + c] = scaled[s.bytes[at + (channels == 3 ? 3 * p + c : p)]];
  return image;
}

// EXIF's eight ways to hold a camera: 2 mirrored, 3 turned by 180 degrees, 4 upside down, 5 to 8 with rows and columns exchanged.
Image upright(Image image, int orientation) {
  if (orientation == 1) return image;
  const bool exchanged = orientation >= 5;
  const bool down = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  const bool right = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  Image turned{exchanged ? image.width : image.height, exchanged ? image.height : image.width, std::vector<uint8_t>(image.rgb.size())};
  for (long y = 0; y < turned.height; ++y)
    for (long x = 0; x < turned.width; ++x) {
      const long v = down ? turned.height - 1 - y : y, u = right ? turned.width - 1 - x : x;
      const long from = exchanged ? u * image.width + v : v * image.width + u;
      std::memcpy(turned.rgb.data() + 3 * (y * turned.width + x), image.rgb.data() + 3 * from, 3);
    }
  return turned;
}

}  // namespace

namespace decoding {

void refuse(const Source& source, const std::string& why) { throw std::invalid_argument(source.name + " is no readable image: " + why); }

void check_size(const Source& source, long height, long width) {
  if (height < 1 || width < 1) refuse(source, "it has no pixels");
  if (height > kMostPixels / width)
    refuse(source, "it has " + std::to_string(width) + "x" + std::to_string(height) + " pixels, at most " + std::to_string(kMostPixels) + " are allowed");
  const uint64_t bytes = 3 * static_cast<uint64_t>(height) * static_cast<uint64_t>(width);
  if (bytes > std::max(kFreeBytes, kMostGrowth * source.size))
    refuse(source, std::to_string(source.size) + " bytes would decode to " + std::to_string(bytes) + ", as a decompression bomb does");
}

}  // namespace decoding

bool is_image(const std::string& path) {
  try {
    const std::vector<uint8_t> first = content_of(path, 8);
    return is_png(first) || is_jpeg(first) || is_pnm(first);
  } catch (const std::invalid_argument&) {
    return false;
  }
}

Image read_image(const std::string& path) {
  const std::vector<uint8_t> content = content_of(path, kMostBytes);
  const decoding::Source source{content.data(), content.size(), path};
  decoding::Notes notes;
  Image image;
  if (is_pnm(content)) return read_pnm(source);
  if (!is_png(content) && !is_jpeg(content))
    decoding::refuse(source, std::string("allowed are ") + image_formats() + "; pack other formats with sparcl pack");
  image = is_png(content) ? decoding::read_png(source, notes) : decoding::read_jpeg(source, notes);
  return upright(std::move(image), decoding::orientation_of(notes));
}

void append_channels(const Image& image, long channels, std::vector<uint8_t>& raw) {
  const size_t pixels = image.rgb.size() / 3;
  for (long c = 0; c < channels; ++c)
    for (size_t p = 0; p < pixels; ++p) {
      const uint8_t* from = image.rgb.data() + 3 * p;
      raw.push_back(channels == 1 ? static_cast<uint8_t>((kGrey[0] * from[0] + kGrey[1] * from[1] + kGrey[2] * from[2] + 500) / 1000) : from[c]);
    }
}

}  // namespace sparcl
