#include "device/samples.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>

#include "device/images.h"
#include "device/model_file.h"

namespace fs = std::filesystem;

namespace sparcl {
namespace {

constexpr size_t kMostSamples = 1 << 24, kMostClasses = 1 << 16;
const char* const kSuffixes[] = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"};  // of images in Python

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string shape_text(const Extent& e) {
  return "[" + std::to_string(e.channels) + ", " + std::to_string(e.height) + ", " + std::to_string(e.width) + "]";
}

// Those that name no sample are no classes of these samples: they leave.
void keep_classes_with_samples(Samples& samples) {
  std::vector<long> place(samples.classes.size(), -1);
  for (long label : samples.labels) place[static_cast<size_t>(label)] = 0;
  std::vector<std::string> kept;
  for (size_t c = 0; c < place.size(); ++c) {
    if (place[c] < 0) continue;
    place[c] = static_cast<long>(kept.size());
    kept.push_back(samples.classes[c]);
  }
  for (long& label : samples.labels) label = place[static_cast<size_t>(label)];
  samples.classes = std::move(kept);
}

void read_classes(const std::string& path, const std::string& text, Samples& samples) {
  std::set<std::string> seen;
  const Json classes = parse_json(text, "the classes of " + path);
  for (const Json& name : classes.list("the classes of " + path, 1, kMostClasses)) {
    samples.classes.push_back(name.string("a class of " + path));
    if (!seen.insert(samples.classes.back()).second) refuse(path + ": class " + to_text(name) + " is named twice");
  }
}

// Numbers of the kind that the network has learned, as sparcl.run.predict.array has it.
void check_values(const std::string& path, const Samples& samples, Wanted::Stored stored) {
  if (samples.bytes && stored == Wanted::kFloats) refuse(path + " holds uint8 samples where the network has learned float32");
  for (size_t i = 0; !samples.bytes && i < samples.raw.size() / 4; ++i) {
    float value;
    std::memcpy(&value, samples.raw.data() + 4 * i, 4);
    const auto sample = [&] { return std::to_string(i / static_cast<size_t>(samples.extent.count())); };
    if (!std::isfinite(value)) refuse(path + ": inputs hold NaN or infinite values, the first in sample " + sample() + ": all must be finite");
    if (stored == Wanted::kBytes && (value < 0 || value > 1))
      refuse(path + " holds " + std::to_string(value) + " in sample " + sample() + ": the network has learned pixels, uint8 or floating from 0 to 1");
  }
}

Samples packed(const std::string& path, const Wanted& wanted) {
  const Extent& input = wanted.input;
  SafeTensors file = read_safetensors(path);
  const auto format = file.metadata.find("format");
  if (format == file.metadata.end() || format->second != "sparcl samples" || !file.metadata.count("classes"))
    refuse(path + " holds no samples: use what sparcl pack wrote, or a folder <class>/* of images");
  if (wanted.resize) refuse("--resize is for images: " + path + " holds packed samples, which have the network's size");
  Samples samples;
  read_classes(path, file.metadata.at("classes"), samples);
  const Tensor &inputs = file.at("inputs"), &labels = file.at("labels");
  if (labels.shape.size() != 1 || inputs.shape.size() < 2 || inputs.shape[0] != labels.shape[0] || labels.shape[0] < 1)
    refuse(path + ": inputs [N, ...] and labels [N] do not fit each other");
  samples.bytes = inputs.dtype == "U8";
  if (!samples.bytes) inputs.floats("inputs of " + path);
  Extent& e = samples.extent;
  e = {inputs.shape[1], inputs.shape.size() == 4 ? inputs.shape[2] : 1, inputs.shape.size() == 4 ? inputs.shape[3] : 1, 1};
  if ((inputs.shape.size() != 2 && inputs.shape.size() != 4) || e.channels != input.channels || e.height != input.height || e.width != input.width)
    refuse(path + ": samples of shape " + shape_text(e) + " where the network takes " + shape_text(input));
  const int64_t* from = labels.int64s("labels of " + path);
  for (long i = 0; i < labels.shape[0]; ++i) {
    if (from[i] < 0 || from[i] >= static_cast<long>(samples.classes.size())) refuse(path + ": a label has no class");
    samples.labels.push_back(from[i]);
    samples.names.push_back(std::to_string(i));
  }
  samples.raw = std::move(file.tensors.at("inputs").bytes);
  check_values(path, samples, wanted.stored);
  keep_classes_with_samples(samples);
  return samples;
}

void append_image(const std::string& path, const Wanted& wanted, std::vector<uint8_t>& raw) {
  const Extent& input = wanted.input;
  Image image = read_image(path);
  if (image.width != input.width || image.height != input.height) {
    if (!wanted.resize)
      refuse(path + " has " + std::to_string(image.width) + "x" + std::to_string(image.height) + " pixels where the network takes " +
             std::to_string(input.width) + "x" + std::to_string(input.height) + ": --resize makes them fit");
    image = resized(std::move(image), input.height, input.width);
  }
  append_channels(image, input.channels, raw);
}

std::vector<fs::path> sorted(const fs::path& folder) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name[0] != '.' && name.compare(0, 8, "__MACOSX") != 0) paths.push_back(entry.path());
    if (paths.size() > kMostSamples) refuse(folder.string() + " holds too many files");
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// A folder being listed: what lies in it that is no image is passed over, as sparcl.streams.folder does.
class Folder {
 public:
  explicit Folder(const Extent& input) {
    samples_.extent = input;
    samples_.bytes = true;
  }

  void add(const fs::path& path) {
    samples_.labels.push_back(static_cast<long>(samples_.classes.size()));
    samples_.names.push_back(path.string());
  }

  void pass_over(const fs::path& path) {
    if (samples_.passed_over++ == 0) samples_.first_passed_over = path.string();
  }

  void consider(const fs::path& path) { !fs::is_directory(path) && (is_image(path.string()) || called_image(path)) ? add(path) : pass_over(path); }

  // needed: refused where it holds no image
  void add_class(const fs::path& folder, bool needed) {
    const size_t before = samples_.size();
    const std::vector<fs::path> paths = sorted(folder);
    for (const fs::path& path : paths) consider(path);
    if (samples_.size() == before && needed) refuse(folder.string() + " holds no image: allowed are " + image_formats() + "; pack other formats with sparcl pack");
    if (paths.empty()) pass_over(folder);
    samples_.classes.push_back(folder.filename().string());
  }

  Samples done() { return std::move(samples_); }
  size_t size() const { return samples_.size(); }

 private:
  // Python would read it, and here it is refused, rather than left out in silence.
  static bool called_image(const fs::path& path) {
    std::string suffix = path.extension().string();
    for (char& c : suffix) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return std::find(std::begin(kSuffixes), std::end(kSuffixes), suffix) != std::end(kSuffixes);
  }

  Samples samples_;
};

// <class>/*; where no classes are asked for, also the images beside the folders, or one image alone.
Samples listed_images(const std::string& place, const Wanted& wanted) {
  if (!wanted.images) refuse("the network takes samples of shape " + shape_text(wanted.input) + " that are no images: use sparcl pack");
  Folder images(wanted.input);
  std::error_code ignored;
  const bool folder = fs::is_directory(place, ignored);
  if (!folder && wanted.classes) refuse(place + " is one image, without a class: give a folder <class>/* of images, or what sparcl pack wrote");
  if (!folder) images.add(place);
  const std::vector<fs::path> paths = folder ? sorted(place) : std::vector<fs::path>();
  for (const fs::path& path : paths)
    if (wanted.classes && fs::is_directory(path) && !is_utf8(path.filename().string())) refuse(path.string() + " is no name of a class: it is not UTF-8");
  for (const fs::path& path : paths) {
    if (fs::is_directory(path))
      images.add_class(path, wanted.classes);
    else if (wanted.classes)
      images.pass_over(path);
    else
      images.consider(path);
  }
  if (images.size() == 0) refuse(place + (wanted.classes ? " holds no class folder with images: <class>/* are needed" : " holds no image"));
  return images.done();
}

// Whether a file may be of safetensors, by its first bytes; what cannot be read is left to whoever reads it.
bool may_be_packed(const std::string& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return true;
  std::ifstream file(path, std::ios::binary);
  char first[9] = "";
  return !file || (file.read(first, sizeof first) && first[8] == '{');
}

}  // namespace

Wanted wanted_by(const ModelFile& model, const Extent& input, bool resize, bool classes) {
  Wanted wanted{input, resize, classes, Wanted::kUnknown, false};
  const Json* said = model.device.find("samples");
  const Tensor* remembered = model.file.find("learner/method/buffer/inputs");
  if (said || remembered) wanted.stored = (said ? said->text == "uint8" : remembered->dtype == "U8") ? Wanted::kBytes : Wanted::kFloats;
  wanted.images = model.input_shape.items.size() == 3 && (input.channels == 1 || input.channels == 3) && wanted.stored != Wanted::kFloats;
  return wanted;
}

SampleReader::SampleReader(const std::string& path, const Wanted& wanted) : wanted_(wanted), packed_(false) {
  try {
    if (fs::is_directory(path) || is_image(path)) {
      samples_ = listed_images(path, wanted);
      return;
    }
  } catch (const fs::filesystem_error& error) {
    refuse(error.path1().string() + " cannot be read: " + error.code().message());
  }
  if (!may_be_packed(path)) refuse(path + " is neither what sparcl pack wrote nor an image that is read here: allowed are " + image_formats() + "; pack others with sparcl pack");
  samples_ = packed(path, wanted);
  packed_ = true;
}

size_t SampleReader::read(size_t first, size_t most) {
  if (packed_) {
    values_ = samples_.raw.data() + first * samples_.stride();
    return most;
  }
  part_.clear();
  size_t count = 0;
  try {
    for (; count < most; ++count) append_image(samples_.names[first + count], wanted_, part_);
  } catch (...) {
    if (count == 0) throw;
  }
  values_ = part_.data();
  return count;
}

Samples SampleReader::all() && {
  for (size_t i = 0; !packed_ && i < samples_.size(); ++i) append_image(samples_.names[i], wanted_, samples_.raw);
  return std::move(samples_);
}

Samples read_samples(const std::string& path, const Wanted& wanted) { return SampleReader(path, wanted).all(); }

void say_passed_over(const Samples& samples) {
  if (samples.passed_over) std::fprintf(stderr, "sparcl-device: %ld file(s) passed over, the first %s\n", samples.passed_over, printable(samples.first_passed_over).c_str());
}

Transform transform_of(const Json& json, const Extent& input) {
  Transform transform;
  const char* const what = "transform";
  for (const Json& value : json.at("mean", what).list("mean", 1, 1 << 16)) transform.mean.push_back(static_cast<float>(value.number("mean", -1e30, 1e30)));
  for (const Json& value : json.at("std", what).list("std", 1, 1 << 16)) transform.std.push_back(static_cast<float>(value.number("std", 1e-30, 1e30)));
  const size_t channels = transform.mean.size();
  if (channels != transform.std.size() || (channels != 1 && channels != static_cast<size_t>(input.channels)))
    refuse("transform: mean and std need one value, or one for each of the " + std::to_string(input.channels) + " channels");
  transform.crop_padding = static_cast<int>(json.at("crop_padding", what).whole("crop_padding", 0, 1 << 12));
  transform.flip = json.at("flip", what).truth("flip");
  return transform;
}

void put_sample(const Transform& t, const Extent& e, bool bytes, const uint8_t* raw, const Place& place, float* batch, long n, long N) {
  for (long c = 0; c < e.channels; ++c) {
    const size_t of = t.mean.size() > 1 ? static_cast<size_t>(c) : 0;
    const double std = static_cast<double>(t.std[of]);
    const float scale = static_cast<float>(1.0 / (bytes ? std * 255 : std)), shift = static_cast<float>(static_cast<double>(t.mean[of]) / std);
    for (long y = 0; y < e.height; ++y)
      for (long x = 0; x < e.width; ++x) {
        const long row = y + place.row, column = (place.flip ? e.width - 1 - x : x) + place.column;
        const bool inside = row >= 0 && row < e.height && column >= 0 && column < e.width;
        const size_t at = inside ? static_cast<size_t>((c * e.height + row) * e.width + column) : 0;
        float value = 0;
        if (inside && bytes)
          value = raw[at];
        else if (inside)
          std::memcpy(&value, raw + 4 * at, 4);
        batch[((c * e.height + y) * e.width + x) * N + n] = value * scale - shift;
      }
  }
}

}  // namespace sparcl
