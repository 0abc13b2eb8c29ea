// JSON values, as a model file's metadata holds them. Numbers keep their text, so that what is read is written again as it was.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace sparcl {

struct Json {
  enum Kind { kNull, kFalse, kTrue, kNumber, kText, kList, kObject } kind = kNull;
  std::string text;  // of a number or a text
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  // Each throws std::invalid_argument, naming `what`, where the value is of another kind or outside its range.
  const Json& at(const std::string& key, const std::string& what) const;
  Json& at(const std::string& key, const std::string& what);
  const Json* find(const std::string& key) const;  // null where there is none
  double number(const std::string& what, double least, double most) const;
  long whole(const std::string& what, long least, long most) const;
  bool truth(const std::string& what) const;
  const std::string& string(const std::string& what) const;
  const std::vector<Json>& list(const std::string& what, size_t least, size_t most) const;

  static Json of(long number);
  static Json of(const std::string& text);
  static Json of_real(double number);  // the shortest text that reads the same, never that of a whole number
  static Json of_truth(bool value);
  static Json of_list(std::vector<Json> items);
  static Json of_members(std::vector<std::pair<std::string, Json>> members);
  void set(const std::string& key, Json value);  // of an object: replaced, or appended
};

Json parse_json(const std::string& text, const std::string& what);  // throws std::invalid_argument
// What would steer a terminal is spelled out (\u0007), and so is a byte that is no UTF-8, as Python has it in names of files (\udcff).
std::string to_text(const Json& value);
bool is_utf8(const std::string& text);
// For people: names out of files must not steer the terminal. What would, or is no UTF-8, is a question mark.
std::string printable(const std::string& text);

}  // namespace sparcl
