#include "device/place.h"

#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <stdexcept>

namespace sparcl {

std::string real_place(const std::string& path) {
  constexpr int kMostLinks = 40;  // as the kernel follows
  std::string place = path;
  for (int links = 0;; ++links) {
    char to[PATH_MAX];
    const ssize_t n = readlink(place.c_str(), to, sizeof to);
    if (n <= 0) return place;
    if (links == kMostLinks) throw std::invalid_argument(path + " is a link that leads nowhere");
    const std::string target(to, static_cast<size_t>(n));
    place = target[0] == '/' ? target : folder_of(place) + "/" + target;
  }
}

bool is_there(const std::string& path) {
  struct stat about {};
  return stat(path.c_str(), &about) == 0;
}

bool same_file(const std::string& one, const std::string& other) {
  struct stat a {}, b {};
  return stat(one.c_str(), &a) == 0 && stat(other.c_str(), &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string name_of(const std::string& path) { return path.substr(path.rfind('/') == std::string::npos ? 0 : path.rfind('/') + 1); }

}  // namespace sparcl
