#include "device/samples.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "device/images.h"
#include "device/model_file.h"

namespace fs = std::filesystem;

namespace sparcl {
namespace {

constexpr size_t kMostSamples = 1 << 24, kMostClasses = 1 << 16;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string shape_text(const Extent& e) {
  return "[" + std::to_string(e.channels) + ", " + std::to_string(e.height) + ", " + std::to_string(e.width) + "]";
}

Samples packed(const std::string& path, const Extent& input) {
  SafeTensors file = read_safetensors(path);
  const auto format = file.metadata.find("format");
  if (format == file.metadata.end() || format->second != "sparcl samples" || !file.metadata.count("classes"))
    refuse(path + " holds no samples: use what sparcl pack wrote, or a folder <class>/* of images");
  Samples samples;
  const Json classes = parse_json(file.metadata.at("classes"), "the classes of " + path);
  for (const Json& name : classes.list("the classes of " + path, 1, kMostClasses))
    samples.classes.push_back(name.string("a class of " + path));
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
  return samples;
}

void append_image(const fs::path& path, const Wanted& wanted, std::vector<uint8_t>& raw) {
  const Extent& input = wanted.input;
  if (input.channels != 1 && input.channels != 3) refuse("the network takes samples of shape " + shape_text(input) + ", no images: use sparcl pack");
  Image image = read_image(path.string());
  if (image.width != input.width || image.height != input.height) {
    if (!wanted.resize)
      refuse(path.string() + " has " + std::to_string(image.width) + "x" + std::to_string(image.height) + " pixels where the network takes " +
             std::to_string(input.width) + "x" + std::to_string(input.height) + ": --resize makes them fit");
    image = resized(std::move(image), input.height, input.width);
  }
  append_channels(image, input.channels, raw);
}

std::vector<fs::path> sorted(const fs::path& folder) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string()[0] != '.') paths.push_back(entry.path());
    if (paths.size() > kMostSamples) refuse(folder.string() + " holds too many files");
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

void append_sample(const fs::path& path, const Wanted& wanted, Samples& samples) {
  append_image(path, wanted, samples.raw);
  samples.labels.push_back(static_cast<long>(samples.classes.size()));
  samples.names.push_back(path.string());
}

// <class>/*; where no classes are asked for, also the images beside the folders, or one image alone.
Samples images(const std::string& place, const Wanted& wanted) {
  Samples samples;
  samples.extent = wanted.input;
  samples.bytes = true;
  std::error_code ignored;
  const bool folder = fs::is_directory(place, ignored);
  if (!folder && wanted.classes) refuse(place + " is one image, without a class: give a folder <class>/* of images, or what sparcl pack wrote");
  if (!folder) append_sample(place, wanted, samples);
  for (const fs::path& of_class : folder ? sorted(place) : std::vector<fs::path>()) {
    if (!fs::is_directory(of_class)) {
      if (!wanted.classes) append_sample(of_class, wanted, samples);
      continue;
    }
    const size_t before = samples.size();
    for (const fs::path& path : sorted(of_class)) append_sample(path, wanted, samples);
    if (samples.size() == before) refuse(of_class.string() + " holds no image");
    samples.classes.push_back(of_class.filename().string());
  }
  if (samples.size() == 0) refuse(place + " holds no class folder with images: <class>/* are needed");
  return samples;
}

}  // namespace

Samples read_samples(const std::string& path, const Wanted& wanted) {
  std::error_code ignored;
  return fs::is_directory(path, ignored) || is_image(path) ? images(path, wanted) : packed(path, wanted.input);
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
