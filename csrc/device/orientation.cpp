// How a camera was held, from EXIF (a small TIFF) or XMP, as Pillow's getexif() reads them.
#include <cmath>
#include <cstring>
#include <iterator>
#include <set>

#include "device/images.h"

namespace sparcl {
namespace decoding {
namespace {

constexpr unsigned kOrientation = 0x0112, kEntry = 12;

class Tiff {
 public:
  explicit Tiff(const std::string& bytes) : bytes_(bytes), big_(!bytes.empty() && bytes[0] == 'M') {}

  size_t size() const { return bytes_.size(); }
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

// EXIF's types of values, by their numbers, as far as they are no plain whole numbers.
enum Type : uint64_t { kByte = 1, kText = 2, kRational = 5, kUndefined = 7, kSignedRational = 10, kFloat = 11, kDouble = 12 };

size_t bytes_of(uint64_t type) {  // of one value; 0: a type that Pillow does not know
  static constexpr size_t kBytes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
  return type < std::size(kBytes) ? kBytes[type] : 0;
}

template <class Number, class Bits>
double as(Bits bits) {
  Number number;
  static_assert(sizeof number == sizeof bits);
  std::memcpy(&number, &bits, sizeof number);
  return static_cast<double>(number);
}

double value_of(const Tiff& tiff, uint64_t type, size_t at) {
  const uint64_t bits = tiff.number(at, bytes_of(type));
  if (type == kFloat) return as<float>(static_cast<uint32_t>(bits));
  if (type == kDouble) return as<double>(bits);
  if (type != kRational && type != kSignedRational) return static_cast<double>(bits);  // of a signed one below 0 it is far above 8
  const uint32_t above = static_cast<uint32_t>(tiff.number(at, 4)), below = static_cast<uint32_t>(tiff.number(at + 4, 4));
  return type == kRational ? static_cast<double>(above) / static_cast<double>(below) : as<int32_t>(above) / as<int32_t>(below);
}

// The way that a value names, 1 to 8, whatever its type; 0: none, as bytes and texts never do.
long way_of(const Tiff& tiff, uint64_t type, size_t at) {
  if (type == kByte || type == kText || type == kUndefined) return 0;
  const double value = value_of(tiff, type, at);
  return value >= 1 && value <= 8 && value == std::floor(value) ? static_cast<long>(value) : 0;
}

// What the directory's first entry of the tag says; -1: it has none that can be read.
long from_directory(const Tiff& tiff, size_t directory) {
  const size_t entries = tiff.number(directory, 2);
  std::set<uint64_t> read;  // tags: only the first of each counts
  uint64_t elsewhere = 0;   // bytes that do not lie in the directory itself
  for (size_t i = 0; i < entries && tiff.holds(directory + 2 + kEntry * i, kEntry); ++i) {
    const size_t entry = directory + 2 + kEntry * i;
    const uint64_t tag = tiff.number(entry, 2), type = tiff.number(entry + 2, 2), size = bytes_of(type) * tiff.number(entry + 4, 4);
    if (size == 0 || read.count(tag)) continue;
    size_t at = entry + 8;
    if (size > 4) {
      at = tiff.number(at, 4);
      elsewhere += size;
      if (elsewhere > tiff.size()) continue;
      if (!tiff.holds(at, size)) return -1;  // nothing behind it is read
    }
    if (tag == kOrientation) return way_of(tiff, type, at);
    read.insert(tag);
  }
  return -1;
}

// The way that the tag names, 0 where it names none; -1 where there is no tag, 1 where the whole is damaged.
long from_exif(std::string exif) {
  for (int i = 0; i < 2 && exif.compare(0, 6, std::string("Exif\0\0", 6)) == 0; ++i) exif.erase(0, 6);
  if (exif.empty()) return -1;
  const Tiff tiff(exif);
  if (!tiff.holds(0, 8) || (exif.compare(0, 2, "II") != 0 && exif.compare(0, 2, "MM") != 0)) return 1;
  const uint64_t magic = tiff.number(2, 2);
  if (magic != 42 && magic != 42 << 8) return 1;
  const size_t directory = tiff.number(4, 4);
  return tiff.holds(directory, 2) ? from_directory(tiff, directory) : -1;
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
