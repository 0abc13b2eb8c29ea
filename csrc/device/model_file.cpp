#include "device/model_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <stdexcept>

#include "device/place.h"
#include "device/sha256.h"

namespace sparcl {
namespace {

constexpr uint64_t kMostBytes = 8ull << 30, kMostHeader = 16ull << 20;
constexpr char kFormat[] = "sparcl model", kVersion[] = "1", kMetadata[] = "__metadata__";
const char* const kParts[] = {"classes", "device", "graph", "input_shape", "state", "transform"};

struct Size {
  const char* name;
  long bytes;
};
constexpr Size kTypes[] = {{"F64", 8}, {"I64", 8}, {"F32", 4}, {"I32", 4}, {"F16", 2}, {"BF16", 2}, {"I16", 2}, {"I8", 1}, {"U8", 1}, {"BOOL", 1}};

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

long bytes_of(const std::string& dtype, const std::string& what) {
  for (const Size& type : kTypes)
    if (dtype == type.name) return type.bytes;
  refuse(what + " is of an unknown dtype");
}

class File {
 public:
  // named: what messages call it
  File(const std::string& path, int flags, mode_t mode = 0, const std::string& named = "")
      : path_(named.empty() ? path : named), descriptor_(open(path.c_str(), flags | O_CLOEXEC, mode)) {}
  ~File() { close(); }
  File(const File&) = delete;
  int get() const { return descriptor_; }
  bool close() {
    const int descriptor = descriptor_;
    descriptor_ = -1;
    return descriptor < 0 || ::close(descriptor) == 0;
  }
  void read(void* to, size_t bytes) {
    for (char* at = static_cast<char*>(to); bytes;) {
      const ssize_t n = ::read(descriptor_, at, std::min<size_t>(bytes, 1 << 30));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) refuse(path_ + " ends too early");
      at += n, bytes -= static_cast<size_t>(n);
    }
  }
  void write(const void* from, size_t bytes) {
    for (const char* at = static_cast<const char*>(from); bytes;) {
      const ssize_t n = ::write(descriptor_, at, std::min<size_t>(bytes, 1 << 30));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw std::runtime_error(path_ + " cannot be written: " + std::strerror(errno));
      at += n, bytes -= static_cast<size_t>(n);
    }
  }

 private:
  const std::string path_;
  int descriptor_;
};

struct Entry {
  std::string name, dtype;
  std::vector<long> shape;
  uint64_t begin, end;
};

Entry entry_of(const std::string& name, const Json& value, const std::string& path) {
  const std::string what = path + ": tensor " + name.substr(0, 80);
  Entry entry{name, value.at("dtype", what).string(what), {}, 0, 0};
  uint64_t bytes = static_cast<uint64_t>(bytes_of(entry.dtype, what));
  for (const Json& size : value.at("shape", what).list(what + ": shape", 0, 16)) {
    entry.shape.push_back(size.whole(what + ": size", 0, 1L << 40));
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(entry.shape.back()), &bytes)) refuse(what + " is too large");
  }
  const auto& offsets = value.at("data_offsets", what).list(what + ": data_offsets", 2, 2);
  entry.begin = static_cast<uint64_t>(offsets[0].whole(what + ": offset", 0, 1L << 40));
  entry.end = static_cast<uint64_t>(offsets[1].whole(what + ": offset", 0, 1L << 40));
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) refuse(what + ": its size does not fit its shape");
  return entry;
}

// In the order of the file, where they must follow each other without a gap.
std::vector<Entry> entries_of(const Json& header, uint64_t data, const std::string& path, std::map<std::string, std::string>& metadata) {
  if (header.kind != Json::kObject) refuse(path + " has no header");
  std::vector<Entry> entries;
  for (const auto& member : header.members) {
    if (member.first != kMetadata) {
      entries.push_back(entry_of(member.first, member.second, path));
      continue;
    }
    for (const auto& said : member.second.members)
      if (!metadata.emplace(said.first, said.second.string(path + ": metadata")).second) refuse(path + " says a thing twice");
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return std::make_pair(a.begin, a.end) < std::make_pair(b.begin, b.end); });
  uint64_t at = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != at) refuse(path + ": its tensors overlap, or leave gaps");
    at = entry.end;
  }
  if (at != data) refuse(path + " is truncated, or has more bytes than its tensors");
  return entries;
}

std::string little_endian(uint64_t value) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(value >> (8 * i));
  return bytes;
}

// Larger elements first, then by name, as Python writes them: equal tensors are equal bytes.
std::vector<std::map<std::string, Tensor>::const_iterator> in_order(const std::map<std::string, Tensor>& tensors) {
  std::vector<std::map<std::string, Tensor>::const_iterator> order;
  for (auto it = tensors.begin(); it != tensors.end(); ++it) order.push_back(it);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return bytes_of(a->second.dtype, a->first) > bytes_of(b->second.dtype, b->first);
  });
  return order;
}

std::string header_of(const SafeTensors& file) {
  Json header, metadata;
  header.kind = metadata.kind = Json::kObject;
  for (const auto& said : file.metadata) metadata.members.emplace_back(said.first, Json::of(said.second));
  header.members.emplace_back(kMetadata, metadata);
  uint64_t end = 0;
  for (const auto& tensor : in_order(file.tensors)) {
    Json entry, shape, offsets;
    entry.kind = Json::kObject;
    shape.kind = offsets.kind = Json::kList;
    for (long size : tensor->second.shape) shape.items.push_back(Json::of(size));
    offsets.items = {Json::of(static_cast<long>(end)), Json::of(static_cast<long>(end + tensor->second.bytes.size()))};
    end += tensor->second.bytes.size();
    entry.members = {{"dtype", Json::of(tensor->second.dtype)}, {"shape", shape}, {"data_offsets", offsets}};
    header.members.emplace_back(tensor->first, entry);
  }
  std::string text = to_text(header);
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

// Of the tensors' bytes, then of the metadata's texts by name.
std::string digest_of(const SafeTensors& file) {
  Sha256 digest;
  for (const auto& tensor : in_order(file.tensors)) digest.update(tensor->second.bytes.data(), tensor->second.bytes.size());
  for (const char* part : kParts) {
    const std::string& text = file.metadata.at(part);
    digest.update(text.data(), text.size());
  }
  return digest.hex();
}

}  // namespace

long Tensor::count() const {
  long count = 1;
  for (long size : shape) count *= size;
  return count;
}

const void* Tensor::of(const char* type, const std::string& what, long wanted) const {
  if (dtype != type) refuse(what + " is " + dtype + ", it must be " + type);
  if (wanted >= 0 && count() != wanted) refuse(what + " has " + std::to_string(count()) + " elements, it must have " + std::to_string(wanted));
  return bytes.data();
}

const float* Tensor::floats(const std::string& what, long wanted) const { return static_cast<const float*>(of("F32", what, wanted)); }
const int32_t* Tensor::int32s(const std::string& what, long wanted) const { return static_cast<const int32_t*>(of("I32", what, wanted)); }
const int64_t* Tensor::int64s(const std::string& what, long wanted) const { return static_cast<const int64_t*>(of("I64", what, wanted)); }

std::vector<uint8_t> Tensor::bools(const std::string& what, long wanted) const {
  const uint8_t* from = static_cast<const uint8_t*>(of("BOOL", what, wanted));
  std::vector<uint8_t> values(from, from + count());
  for (uint8_t value : values)
    if (value > 1) refuse(what + " must be true or false everywhere");
  return values;
}

const Tensor* SafeTensors::find(const std::string& name) const {
  const auto found = tensors.find(name);
  return found == tensors.end() ? nullptr : &found->second;
}

const Tensor& SafeTensors::at(const std::string& name) const {
  const Tensor* found = find(name);
  if (!found) refuse("the file lacks the tensor " + name.substr(0, 80));
  return *found;
}

SafeTensors read_safetensors(const std::string& path) {
  File file(path, O_RDONLY | O_NONBLOCK);  // a named pipe must not hang us
  struct stat about {};
  if (file.get() < 0 || fstat(file.get(), &about) != 0) refuse(path + " cannot be read: " + std::strerror(errno));
  if (!S_ISREG(about.st_mode)) refuse(path + " is not a regular file");
  const uint64_t size = static_cast<uint64_t>(about.st_size);
  if (size < 8 || size > kMostBytes) refuse(path + " is no safetensors file: it has " + std::to_string(size) + " bytes");
  uint8_t prefix[8];
  file.read(prefix, sizeof prefix);
  uint64_t length = 0;
  for (int i = 0; i < 8; ++i) length |= static_cast<uint64_t>(prefix[i]) << (8 * i);
  if (length > size - 8 || length > kMostHeader) refuse(path + " is no safetensors file: its header does not fit");
  std::string text(length, '\0');
  file.read(&text[0], length);
  SafeTensors all;
  for (const Entry& entry : entries_of(parse_json(text, "the header of " + path), size - 8 - length, path, all.metadata)) {
    Tensor tensor{entry.dtype, entry.shape, std::vector<uint8_t>(entry.end - entry.begin)};
    file.read(tensor.bytes.data(), tensor.bytes.size());
    if (!all.tensors.emplace(entry.name, std::move(tensor)).second) refuse(path + " holds a tensor twice");
  }
  return all;
}

void write_safetensors(const std::string& path, const SafeTensors& file) {
  const std::string place = real_place(path);  // a link stays a link
  const std::string folder = folder_of(place), temporary = folder + "/." + name_of(place) + ".tmp";
  unlink(temporary.c_str());  // of a write that was cut off
  const auto fail = [&] { throw std::runtime_error(path + " cannot be written: " + std::strerror(errno)); };
  try {
    File to(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666, path);
    struct stat old {};
    if (to.get() < 0) fail();
    if (stat(place.c_str(), &old) == 0) {
      if (fchown(to.get(), old.st_uid, old.st_gid) != 0) errno = 0;  // only root gives a file away
      if (fchmod(to.get(), old.st_mode & 07777) != 0) errno = 0;     // not every disk has modes
    }
    const std::string header = header_of(file);
    const std::string length = little_endian(header.size());
    to.write(length.data(), length.size());
    to.write(header.data(), header.size());
    for (const auto& tensor : in_order(file.tensors)) to.write(tensor->second.bytes.data(), tensor->second.bytes.size());
    if (fsync(to.get()) != 0 || !to.close() || rename(temporary.c_str(), place.c_str()) != 0) fail();
  } catch (...) {
    unlink(temporary.c_str());
    throw;
  }
  File directory(folder, O_RDONLY | O_DIRECTORY);
  if (directory.get() < 0 || fsync(directory.get()) != 0) throw std::runtime_error(folder + " cannot be synced: " + std::strerror(errno));
}

namespace {

// Takes from `left` every tensor that the state names, each by its own path, as sparcl.checkpoint.tree does.
void check_names(const Json& value, const std::string& path, std::set<std::string>& left) {
  if (const Json* named = value.find("$tensor")) {
    if (named->text != path || value.members.size() != 1 || left.erase(path) != 1) refuse("the state's " + path.substr(0, 80) + " names a tensor that is not there");
    return;
  }
  for (size_t i = 0; i < value.items.size(); ++i) check_names(value.items[i], path + "/" + std::to_string(i), left);
  for (const auto& member : value.members) check_names(member.second, path.empty() ? member.first : path + "/" + member.first, left);
}

}  // namespace

ModelFile read_model(const std::string& path) {
  ModelFile model;
  model.file = read_safetensors(path);
  auto& said = model.file.metadata;
  if (said["format"] != kFormat) refuse(path + " is no sparcl model");
  if (said["version"] != kVersion) refuse(path + " has format version " + said["version"].substr(0, 20) + "; this program reads " + kVersion);
  for (const char* part : kParts)
    if (!said.count(part)) refuse(path + " is damaged: its metadata lacks " + part);
  if (digest_of(model.file) != said["sha256"]) refuse(path + " is damaged: its checksum is wrong");
  Json* const parts[] = {&model.classes, &model.device, &model.graph, &model.input_shape, &model.state, &model.transform};
  for (size_t i = 0; i < 6; ++i) *parts[i] = parse_json(said[kParts[i]], std::string(kParts[i]) + " of " + path);
  std::set<std::string> left;
  for (const auto& tensor : model.file.tensors) left.insert(tensor.first);
  check_names(model.state, "", left);
  if (!left.empty()) refuse(path + ": the state does not mention the tensor " + left.begin()->substr(0, 80));
  return model;
}

Json put_tensor(ModelFile& model, const std::string& path, Tensor tensor) {
  model.file.tensors[path] = std::move(tensor);
  return Json::of_members({{"$tensor", Json::of(path)}});
}

std::vector<long> shape_of(const ModelFile& model, const std::string& parameter, size_t count) {
  const Tensor* dense = model.file.find("model/" + parameter);
  return dense ? dense->shape : std::vector<long>{static_cast<long>(count)};
}

void drop_tensors(ModelFile& model, const std::string& below) {
  auto& tensors = model.file.tensors;
  const auto first = tensors.lower_bound(below);
  auto last = first;
  while (last != tensors.end() && last->first.compare(0, below.size(), below) == 0) ++last;
  tensors.erase(first, last);
}

void write_model(const std::string& path, ModelFile& model) {
  const Json* const parts[] = {&model.classes, &model.device, &model.graph, &model.input_shape, &model.state, &model.transform};
  for (size_t i = 0; i < 6; ++i) model.file.metadata[kParts[i]] = to_text(*parts[i]);
  model.file.metadata["sha256"] = digest_of(model.file);
  write_safetensors(path, model.file);
}

}  // namespace sparcl
