// Paths that a user names: where a file lies behind its links.
#pragma once
#include <string>

namespace sparcl {

// Behind all links, whether the file is there yet or not. Throws std::invalid_argument: too many links.
std::string real_place(const std::string& path);
bool is_there(const std::string& path);
bool same_file(const std::string& one, const std::string& other);  // or folder; false where one is not there
// The folder of a path, "." where it names none, and the name in it.
std::string folder_of(const std::string& path);
std::string name_of(const std::string& path);

}  // namespace sparcl
