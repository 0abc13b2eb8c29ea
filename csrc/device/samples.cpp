#include "device/samples.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

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
  const SafeTensors file = read_safetensors(path);
  const auto format = file.metadata.find("format");
  if (format == file.metadata.end() || format->second != "sparcl samples" || !file.metadata.count("classes"))
    refuse(path + " holds no samples: use what sparcl pack wrote, or a folder <class>/* of PPM or PGM images");
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
  samples.raw = inputs.bytes;
  const int64_t* from = labels.int64s("labels of " + path);
  for (long i = 0; i < labels.shape[0]; ++i) {
    if (from[i] < 0 || from[i] >= static_cast<long>(samples.classes.size())) refuse(path + ": a label has no class");
    samples.labels.push_back(from[i]);
    samples.names.push_back(std::to_string(i));
  }
  return samples;
}

// A number of a PNM header, behind spaces and comments.
long header_number(std::istream& file) {
  for (int c = file.peek(); c == '#' || (c != EOF && std::isspace(c)); c = file.peek()) {
    std::string line;
    if (c == '#')
      std::getline(file, line);
    else
      file.get();
  }
  long value = -1;
  file >> value;
  return file ? value : -1;
}

void append_image(const fs::path& path, const Extent& input, std::vector<uint8_t>& raw) {
  if (!fs::is_regular_file(path)) refuse(path.string() + " is not a regular file");
  std::ifstream file(path, std::ios::binary);
  char magic[2] = {0, 0};
  file.read(magic, 2);
  if (!file || magic[0] != 'P' || (magic[1] != '5' && magic[1] != '6'))
    refuse(path.string() + " is no PPM or PGM image (P6 or P5); other formats: pack them with sparcl pack");
  const long channels = magic[1] == '6' ? 3 : 1, width = header_number(file), height = header_number(file), most = header_number(file);
  if (most != 255) refuse(path.string() + " is damaged, or not of 8 bits a value");
  if (channels != input.channels || width != input.width || height != input.height)
    refuse(path.string() + " has shape " + shape_text({channels, height, width, 1}) + " where the network takes " + shape_text(input));
  file.get();
  std::vector<char> pixels(static_cast<size_t>(input.count()));
  if (!file.read(pixels.data(), static_cast<std::streamsize>(pixels.size()))) refuse(path.string() + " ends too early");
  for (long c = 0; c < channels; ++c)
    for (long p = 0; p < height * width; ++p) raw.push_back(static_cast<uint8_t>(pixels[static_cast<size_t>(p * channels + c)]));
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

Samples images(const std::string& folder, const Extent& input) {
  Samples samples;
  samples.extent = input;
  samples.bytes = true;
  for (const fs::path& of_class : sorted(folder)) {
    if (!fs::is_directory(of_class)) continue;
    const size_t before = samples.size();
    for (const fs::path& path : sorted(of_class)) {
      append_image(path, input, samples.raw);
      samples.labels.push_back(static_cast<long>(samples.classes.size()));
      samples.names.push_back(path.string());
    }
    if (samples.size() == before) refuse(of_class.string() + " holds no image");
    samples.classes.push_back(of_class.filename().string());
  }
  if (samples.size() == 0) refuse(folder + " holds no class folder with images: <class>/*.ppm or *.pgm are needed");
  return samples;
}

}  // namespace

Samples read_samples(const std::string& path, const Extent& input) {
  std::error_code ignored;
  return fs::is_directory(path, ignored) ? images(path, input) : packed(path, input);
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
