#include "device/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "device/place.h"

namespace sparcl {
namespace {

constexpr int kTries = 100;  // a holder that ends just now takes its lock file with it

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// The process that a lock file names.
std::string holder(int descriptor) {
  char text[24] = "";
  const ssize_t n = pread(descriptor, text, sizeof text - 1, 0);
  std::string pid;
  for (ssize_t i = 0; i < n && text[i] >= '0' && text[i] <= '9'; ++i) pid.push_back(text[i]);
  return pid.empty() ? "unknown" : pid;
}

bool is_still(const std::string& place, int descriptor) {
  struct stat held {}, there {};
  return fstat(descriptor, &held) == 0 && lstat(place.c_str(), &there) == 0 && held.st_ino == there.st_ino && held.st_dev == there.st_dev;
}

}  // namespace

FileLock::FileLock(const std::string& path) {
  struct stat about {};
  if (stat(path.c_str(), &about) == 0 && !S_ISREG(about.st_mode)) refuse(path + " is not a regular file");
  if (is_there(path) && access(path.c_str(), W_OK) != 0) refuse(path + " cannot be written: " + std::strerror(errno));
  const std::string place = real_place(path);  // a link's lock is that of its file
  place_ = folder_of(place) + "/." + name_of(place) + ".lock";
  for (int tries = 0; descriptor_ < 0; ++tries) {
    descriptor_ = open(place_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (descriptor_ < 0) refuse(path + " cannot be written: " + std::strerror(errno));
    const bool regular = fstat(descriptor_, &about) == 0 && S_ISREG(about.st_mode) && about.st_nlink <= 1;
    std::string fault;
    if (!regular)
      fault = place_ + " is no lock of this program: move it away";
    else if (flock(descriptor_, LOCK_EX | LOCK_NB) != 0)
      fault = errno == EWOULDBLOCK ? path + " is being learned by another process (" + holder(descriptor_) + ")" : path + " cannot be locked: " + std::strerror(errno);
    else if (is_still(place_, descriptor_))
      break;
    else if (tries == kTries)
      fault = path + " is being learned by other processes";
    close(descriptor_);
    descriptor_ = -1;
    if (!fault.empty()) refuse(fault);
  }
  const std::string pid = std::to_string(getpid()) + "\n";
  if (ftruncate(descriptor_, 0) != 0 || pwrite(descriptor_, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    const std::string why = std::strerror(errno);  // a full disk
    unlink(place_.c_str());
    close(descriptor_);
    refuse(path + " cannot be written: " + why);
  }
}

FileLock::~FileLock() {
  unlink(place_.c_str());
  close(descriptor_);
}

}  // namespace sparcl
