// How a camera was held, from EXIF (a small TIFF) or XMP, as Pillow's getexif() reads them.
#include <cstring>

#include "device/images.h"

namespace sparcl {
namespace decoding {
namespace {

constexpr unsigned kOrientation = 0x0112, kEntry = 12;

class Tiff {
 public:
  explicit Tiff(const std::string& bytes) : bytes_(bytes), big_(!bytes.empty() && bytes[0] == 'M') {}

  bool holds(size_t at, size_t bytes) const { return at <= bytes_.size() && bytes <= bytes_.size() - at; }
  // Only where holds(at, bytes).
  uint64_t number(size_t at, size_t bytes) const {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(static_cast<unsigned char>(bytes_[at + i])) << (8 * (big_ ? bytes - 1 - i : i));
    return value;
  }

 private:
  const std::string& bytes_;
  bool big_;
};

size_t bytes_of(uint64_t type) {  // of whole numbers alone
  if (type == 3 || type == 8) return 2;
  if (type == 4 || type == 9 || type == 13) return 4;
  return type == 6 ? 1 : 0;
}

// The value of the tag; -1 where there is none, 1 where the whole is damaged.
long from_exif(std::string exif) {
  for (int i = 0; i < 2 && exif.compare(0, 6, std::string("Exif\0\0", 6)) == 0; ++i) exif.erase(0, 6);
  if (exif.empty()) return -1;
  const Tiff tiff(exif);
  if (!tiff.holds(0, 8) || (exif.compare(0, 2, "II") != 0 && exif.compare(0, 2, "MM") != 0)) return 1;
  const uint64_t magic = tiff.number(2, 2);
  if (magic != 42 && magic != 42 << 8) return 1;
  const size_t directory = tiff.number(4, 4);
  if (!tiff.holds(directory, 2)) return -1;
  const size_t entries = tiff.number(directory, 2);
  long found = -1;
  for (size_t i = 0; i < entries && tiff.holds(directory + 2 + kEntry * i, kEntry); ++i) {
    size_t at = directory + 2 + kEntry * i;
    const uint64_t tag = tiff.number(at, 2), count = tiff.number(at + 4, 4);
    const size_t bytes = bytes_of(tiff.number(at + 2, 2));
    if (tag != kOrientation) continue;
    if (bytes == 0 || count == 0) {
      found = 1;  // no whole number, so it names no way to turn
      continue;
    }
    at = count * bytes > 4 ? tiff.number(at + 8, 4) : at + 8;
    if (tiff.holds(at, count * bytes)) found = static_cast<long>(tiff.number(at, bytes));
  }
  return found;
}

long from_xmp(const std::string& xmp) {
  static const std::string kName = "tiff:Orientation";
  for (size_t at = xmp.find(kName); at != std::string::npos; at = xmp.find(kName, at + 1)) {
    size_t behind = at + kName.size();
    if (xmp.compare(behind, 2, "=\"") == 0)
      behind += 2;
    else if (xmp.compare(behind, 1, ">") == 0)
      behind += 1;
    else
      continue;
    if (behind < xmp.size() && xmp[behind] >= '0' && xmp[behind] <= '9') return xmp[behind] - '0';
  }
  return -1;
}

}  // namespace

int orientation_of(const Notes& notes) {
  long found = from_exif(notes.exif);
  if (found < 0) found = from_xmp(notes.xmp);
  return found >= 1 && found <= 8 ? static_cast<int>(found) : 1;
}

}  // namespace decoding
}  // namespace sparcl
