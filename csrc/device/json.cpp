#include "device/json.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace sparcl {
namespace {

constexpr int kMostDepth = 64;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

class Parser {
 public:
  Parser(const std::string& text, const std::string& what) : text_(text), what_(what) {}

  Json all() {
    if (!is_utf8(text_)) refuse(what_ + " is not UTF-8");
    Json value = this->value(0);
    if (space() != text_.size()) wrong();
    return value;
  }

 private:
  [[noreturn]] void wrong() const { refuse(what_ + " is not valid JSON at byte " + std::to_string(at_)); }

  size_t space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
    return at_;
  }

  char peek() { return space() < text_.size() ? text_[at_] : '\0'; }

  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  bool word(const char* word) {
    const std::string w(word);
    if (text_.compare(at_, w.size(), w) != 0) return false;
    at_ += w.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kMostDepth) refuse(what_ + " is nested more than " + std::to_string(kMostDepth) + " deep");
    Json value;
    const char c = peek();
    if (c == '{') {
      object(value, depth);
    } else if (c == '[') {
      list(value, depth);
    } else if (c == '"') {
      value.kind = Json::kText;
      value.text = string();
    } else if (word("true")) {
      value.kind = Json::kTrue;
    } else if (word("false")) {
      value.kind = Json::kFalse;
    } else if (!word("null")) {
      value.kind = Json::kNumber;
      value.text = number();
    }
    return value;
  }

  void object(Json& value, int depth) {
    value.kind = Json::kObject;
    take('{');
    if (take('}')) return;
    do {
      if (peek() != '"') wrong();
      std::string key = string();
      if (!take(':')) wrong();
      value.members.emplace_back(std::move(key), this->value(depth + 1));
    } while (take(','));
    if (!take('}')) wrong();
  }

  void list(Json& value, int depth) {
    value.kind = Json::kList;
    take('[');
    if (take(']')) return;
    do value.items.push_back(this->value(depth + 1));
    while (take(','));
    if (!take(']')) wrong();
  }

  std::string number() {
    const size_t first = at_;
    while (at_ < text_.size() && (std::isdigit(static_cast<unsigned char>(text_[at_])) || std::string("+-.eE").find(text_[at_]) != std::string::npos)) ++at_;
    const std::string number = text_.substr(first, at_ - first);
    char* end = nullptr;
    const double v = std::strtod(number.c_str(), &end);
    if (number.empty() || *end || !std::isfinite(v) || number[0] == '+' || number[0] == '.') wrong();
    return number;
  }

  std::string string() {
    std::string out;
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      const char c = text_[at_];
      if (static_cast<unsigned char>(c) < 0x20) wrong();
      if (c != '\\') {
        out += c;
        continue;
      }
      if (++at_ >= text_.size()) wrong();
      const std::string from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
      const size_t simple = from.find(text_[at_]);
      if (simple != std::string::npos)
        out += to[simple];
      else if (text_[at_] == 'u')
        append(out, code());
      else
        wrong();
    }
    if (at_ >= text_.size()) wrong();
    ++at_;
    return out;
  }

  unsigned hex4() {
    unsigned v = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = ++at_ < text_.size() ? text_[at_] : '\0';
      if (!std::isxdigit(static_cast<unsigned char>(c))) wrong();
      v = v * 16 + static_cast<unsigned>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return v;
  }

  unsigned code() {
    const unsigned high = hex4();
    if (high < 0xD800 || high > 0xDFFF) return high;
    if (high > 0xDBFF || text_.compare(at_ + 1, 2, "\\u") != 0) wrong();
    at_ += 2;
    const unsigned low = hex4();
    if (low < 0xDC00 || low > 0xDFFF) wrong();
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
  }

  static void append(std::string& out, unsigned c) {
    const auto put = [&](unsigned byte) { out += static_cast<char>(byte); };
    if (c < 0x80) return put(c);
    if (c < 0x800) {
      put(0xC0 | c >> 6);
    } else if (c < 0x10000) {
      put(0xE0 | c >> 12);
      put(0x80 | (c >> 6 & 63));
    } else {
      put(0xF0 | c >> 18);
      put(0x80 | (c >> 12 & 63));
      put(0x80 | (c >> 6 & 63));
    }
    put(0x80 | (c & 63));
  }

  const std::string& text_;
  const std::string what_;
  size_t at_ = 0;
};

// The length of the UTF-8 character at a place, and its code; 0 where none is.
size_t character(const std::string& text, size_t at, unsigned& code) {
  const auto byte = [&](size_t i) { return static_cast<unsigned>(static_cast<unsigned char>(i < text.size() ? text[i] : 0)); };
  const unsigned first = byte(at);
  const size_t more = first < 0x80 ? 0 : first < 0xC2 ? 4 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : 4;
  if (more == 4) return 0;
  code = more == 0 ? first : first & (0x3F >> more);
  for (size_t i = 1; i <= more; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(at + i) & 63);
  }
  const bool shortest = more < 2 || code >= (more == 2 ? 0x800u : 0x10000u);
  return shortest && code <= 0x10FFFF && (code < 0xD800 || code >= 0xE000) ? more + 1 : 0;
}

// Whether a character does something to a line instead of standing in it: controls, breaks, what turns the direction or is not seen.
bool steers(unsigned code) {
  static constexpr unsigned kSpans[][2] = {{0, 0x1F}, {0x7F, 0x9F}, {0x200B, 0x200F}, {0x2028, 0x202E}, {0x2060, 0x206F}, {0xFEFF, 0xFEFF}};
  for (const auto& span : kSpans)
    if (code >= span[0] && code <= span[1]) return true;
  return false;
}

void write_string(const std::string& text, std::string& out) {
  constexpr unsigned kUndecoded = 0xDC00;  // before a byte that is no UTF-8
  out += '"';
  for (size_t at = 0, length; at < text.size(); at += std::max<size_t>(length, 1)) {
    unsigned code = 0;
    length = character(text, at, code);
    if (length == 0 || steers(code)) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", (length ? code : kUndecoded + static_cast<unsigned char>(text[at])) & 0xFFFF);
      out += escaped;
      continue;
    }
    if (code == '"' || code == '\\') out += '\\';
    out.append(text, at, length);
  }
  out += '"';
}

void write(const Json& value, std::string& out) {
  static const char* const kWords[] = {"null", "false", "true"};
  if (value.kind <= Json::kTrue) {
    out += kWords[value.kind];
  } else if (value.kind == Json::kNumber) {
    out += value.text;
  } else if (value.kind == Json::kText) {
    write_string(value.text, out);
  } else if (value.kind == Json::kList) {
    out += '[';
    for (size_t i = 0; i < value.items.size(); ++i) {
      if (i) out += ',';
      write(value.items[i], out);
    }
    out += ']';
  } else {
    out += '{';
    for (size_t i = 0; i < value.members.size(); ++i) {
      if (i) out += ',';
      write_string(value.members[i].first, out);
      out += ':';
      write(value.members[i].second, out);
    }
    out += '}';
  }
}

}  // namespace

const Json* Json::find(const std::string& key) const {
  for (const auto& member : members)
    if (member.first == key) return &member.second;
  return nullptr;
}

const Json& Json::at(const std::string& key, const std::string& what) const {
  const Json* found = find(key);
  if (!found) refuse(what + " lacks " + key);
  return *found;
}

Json& Json::at(const std::string& key, const std::string& what) {
  return const_cast<Json&>(static_cast<const Json*>(this)->at(key, what));
}

double Json::number(const std::string& what, double least, double most) const {
  const double v = kind == kNumber ? std::strtod(text.c_str(), nullptr) : NAN;
  if (!(v >= least && v <= most)) {
    char allowed[96];
    std::snprintf(allowed, sizeof allowed, " must be a number from %g to %g", least, most);
    refuse(what + allowed);
  }
  return v;
}

long Json::whole(const std::string& what, long least, long most) const {
  char* end = nullptr;
  const long v = kind == kNumber ? std::strtol(text.c_str(), &end, 10) : 0;
  if (kind != kNumber || *end || v < least || v > most)
    refuse(what + " must be a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  return v;
}

bool Json::truth(const std::string& what) const {
  if (kind != kTrue && kind != kFalse) refuse(what + " must be true or false");
  return kind == kTrue;
}

const std::string& Json::string(const std::string& what) const {
  if (kind != kText) refuse(what + " must be a text");
  return text;
}

const std::vector<Json>& Json::list(const std::string& what, size_t least, size_t most) const {
  if (kind != kList || items.size() < least || items.size() > most)
    refuse(what + " must be a list of " + std::to_string(least) + " to " + std::to_string(most) + " items");
  return items;
}

Json Json::of(long number) {
  Json value;
  value.kind = kNumber;
  value.text = std::to_string(number);
  return value;
}

Json Json::of(const std::string& text) {
  Json value;
  value.kind = kText;
  value.text = text;
  return value;
}

Json Json::of_real(double number) {
  Json value;
  value.kind = kNumber;
  char text[40];
  for (int digits = 1; digits <= 17; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, number);
    if (std::strtod(text, nullptr) == number) break;
  }
  value.text = text;
  if (value.text.find_first_of(".e") == std::string::npos) value.text += ".0";
  return value;
}

Json Json::of_truth(bool value) {
  Json json;
  json.kind = value ? kTrue : kFalse;
  return json;
}

Json Json::of_list(std::vector<Json> items) {
  Json json;
  json.kind = kList;
  json.items = std::move(items);
  return json;
}

Json Json::of_members(std::vector<std::pair<std::string, Json>> members) {
  Json json;
  json.kind = kObject;
  json.members = std::move(members);
  return json;
}

void Json::set(const std::string& key, Json value) {
  kind = kObject;
  for (auto& member : members)
    if (member.first == key) {
      member.second = std::move(value);
      return;
    }
  members.emplace_back(key, std::move(value));
}

bool is_utf8(const std::string& text) {
  unsigned code = 0;
  for (size_t at = 0, length; at < text.size(); at += length)
    if (length = character(text, at, code); length == 0) return false;
  return true;
}

std::string printable(const std::string& text) {
  std::string shown;
  for (size_t at = 0, length; at < text.size(); at += std::max<size_t>(length, 1)) {
    unsigned code = 0;
    length = character(text, at, code);
    if (length == 0 || steers(code))
      shown += '?';
    else
      shown.append(text, at, length);
  }
  return shown;
}

Json parse_json(const std::string& text, const std::string& what) { return Parser(text, what).all(); }

std::string to_text(const Json& value) {
  std::string out;
  write(value, out);
  return out;
}

}  // namespace sparcl
