// One `learn` at a time on a file: a lock that ends with its process, however that ends.
#pragma once
#include <string>

namespace sparcl {

class FileLock {
 public:
  // Holds `path`, which need not be there yet, by a file .NAME.lock beside it, or beside what it links to. Throws std::invalid_argument, one line: another process
  // holds it, or nothing can be written there.
  explicit FileLock(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;

 private:
  std::string place_;
  int descriptor_ = -1;
};

}  // namespace sparcl
