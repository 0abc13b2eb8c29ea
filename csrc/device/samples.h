// Samples to learn or to look at: a packed file (`sparcl pack`), or a folder `<class>/*` of images.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "device/model_file.h"
#include "engine/plan.h"

namespace sparcl {

struct Samples {
  Extent extent{};                   // of one
  bool bytes = false;                // whether a value is a byte, or a float
  std::vector<uint8_t> raw;          // [n][channels][rows][columns]
  std::vector<long> labels;          // into classes
  std::vector<std::string> classes;  // names
  std::vector<std::string> names;    // of the samples
  long passed_over = 0;              // files of a folder that are no images
  std::string first_passed_over;

  size_t size() const { return labels.size(); }
  size_t stride() const { return static_cast<size_t>(extent.count()) * (bytes ? 1 : 4); }
};
struct Wanted {
  Extent input;  // what the network takes
  bool resize;   // images of another size; otherwise they are refused
  bool classes;  // images must lie in folders of their classes
  enum Stored { kUnknown, kBytes, kFloats } stored;  // of the samples that the network has learned
  bool images;                                       // whether they may have been images
};
// Of the samples that a model is to answer to or to learn. Throws std::invalid_argument.
Wanted wanted_by(const ModelFile& model, const Extent& input, bool resize, bool classes);
// Samples of the shape and the type that a network takes, of classes that all have some, as they are asked for: a folder may hold more
// images than fit into memory. All throw std::invalid_argument, one line.
class SampleReader {
 public:
  SampleReader(const std::string& path, const Wanted& wanted);
  const Samples& listed() const { return samples_; }  // what is known before images are decoded: all but their pixels
  // Reads `most` samples, or those before one that cannot be read: whoever begins with that is told why. Returns how many.
  size_t read(size_t first, size_t most);
  const uint8_t* values() const { return values_; }  // of what was read last
  Samples all() &&;

 private:
  Wanted wanted_;
  Samples samples_;
  bool packed_;
  std::vector<uint8_t> part_;
  const uint8_t* values_ = nullptr;
};
Samples read_samples(const std::string& path, const Wanted& wanted);  // all at once
void say_passed_over(const Samples& samples);  // on stderr, where files were

// What happens to a sample between storage and network.
struct Transform {
  std::vector<float> mean, std;
  int crop_padding = 0;
  bool flip = false;
};
Transform transform_of(const Json& json, const Extent& input);

struct Place {
  int row, column;  // of the crop, from -padding to padding
  bool flip;
};
// Writes one raw sample as column n of N of a batch [channels][rows][columns][N], normalised.
void put_sample(const Transform& transform, const Extent& extent, bool bytes, const uint8_t* raw, const Place& place, float* batch, long n, long N);

}  // namespace sparcl
