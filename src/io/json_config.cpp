#include "io/json_config.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/recognise.h"

namespace calibatt {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxShown = 40;  // bytes of a foreign value quoted in a message

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "…";
  return text;
}

/// Builds a value from the parser's events in linear time. (The library's own parser, asked about each event, looks at
/// all earlier keys of an object after each of its values.)
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(const std::string& where) : where_(where) {}
  Json take() { return std::move(root_); }

  bool null() override { return put(nullptr) != nullptr; }
  bool boolean(bool value) override { return put(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return put(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return put(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override { return put(value) != nullptr; }
  bool string(string_t& value) override { return put(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return false; }  // JSON has none
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    const auto [place, inserted] = open_.back()->get_ref<Json::object_t&>().emplace(name, nullptr);
    if (!inserted) fail("key " + shown(name) + " appears twice");
    member_ = &place->second;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    std::string reason = error.what();  // "[json.exception.parse_error.101] parse error at line 1, …"
    if (const size_t end = reason.find("] "); end != std::string::npos) reason = reason.substr(end + 2);
    fail("not valid JSON: " + reason.substr(0, 200));
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const { throw Error(ErrorKind::kFormat, where_ + ": " + reason); }
  Json* put(Json value) {
    if (open_.empty()) return &(root_ = std::move(value));
    if (open_.back()->is_object()) return &(*member_ = std::move(value));
    auto& list = open_.back()->get_ref<Json::array_t&>();
    return &list.emplace_back(std::move(value));
  }
  bool open(Json container) {
    open_.push_back(put(std::move(container)));
    if (open_.size() > kMaxDepth) fail("JSON nested deeper than " + std::to_string(kMaxDepth) + " levels");
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& where_;
  Json root_;
  std::vector<Json*> open_;  ///< objects and lists around this point; each the last element of the one before
  Json* member_ = nullptr;   ///< of the open object, whose key was read
};

}  // namespace

Json parse_json(std::string_view text, const std::string& where) {
  Builder builder(where);
  Json::sax_parse(text, &builder);
  return builder.take();
}

JsonConfig JsonConfig::load(const std::string& path) {
  const std::string text = read_text_file(path);
  const std::string found =
      text.starts_with('{') ? "" : recognise_bytes({reinterpret_cast<const unsigned char*>(text.data()), text.size()});
  if (!found.empty()) throw Error(ErrorKind::kFormat, path + ": " + found);
  return {parse_json(text, path), path};
}

JsonConfig::JsonConfig(const Json& object, std::string where)
    : json_(std::make_shared<const Json>(object)), where_(std::move(where)) {
  if (!json_->is_object()) {
    throw Error(ErrorKind::kFormat, where_ + ": expected a JSON object, found " + shown(*json_));
  }
}

bool JsonConfig::has(const std::string& key) const {
  read_->insert(key);
  const auto found = json_->find(key);
  return found != json_->end() && !found->is_null();
}

void JsonConfig::fail(const std::string& key, const std::string& message) const {
  throw Error(ErrorKind::kFormat, where_ + ": key \"" + key + "\": " + message);
}

const Json& JsonConfig::at(const std::string& key, const char* expected) const {
  if (!has(key)) fail(key, std::string("missing; expected ") + expected);
  return json_->at(key);
}

namespace {

bool is_int64(const Json& value) {
  // An unsigned beyond int64 would wrap around in get<int64_t>().
  return value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
}

std::string expectation(const char* expected, const Json& found) {
  return std::string("expected ") + expected + ", found " + shown(found);
}

}  // namespace

int64_t JsonConfig::integer(const std::string& key) const {
  const Json& value = at(key, "an integer");
  if (!is_int64(value)) fail(key, expectation("an integer", value));
  return value.get<int64_t>();
}

int64_t JsonConfig::integer(const std::string& key, int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

int JsonConfig::integer_in(const std::string& key, int64_t min, int64_t max) const {
  const int64_t value = integer(key);
  if (value < min || value > max) {
    fail(key, "expected an integer from " + std::to_string(min) + " to " + std::to_string(max) + ", found " +
                  std::to_string(value));
  }
  return static_cast<int>(value);
}

int JsonConfig::integer_in(const std::string& key, int64_t min, int64_t max, int64_t fallback) const {
  return has(key) ? integer_in(key, min, max) : static_cast<int>(fallback);
}

double JsonConfig::number(const std::string& key) const {
  const Json& value = at(key, "a number");
  if (!value.is_number()) fail(key, expectation("a number", value));
  return value.get<double>();
}

double JsonConfig::number(const std::string& key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

double JsonConfig::number_in(const std::string& key, double min, double max, double fallback) const {
  const double value = number(key, fallback);
  if (!(value >= min && value <= max)) {
    fail(key,
         "expected a number from " + shown(Json(min)) + " to " + shown(Json(max)) + ", found " + shown(at(key, "")));
  }
  return value;
}

float JsonConfig::epsilon(const std::string& key, double fallback) const {
  return static_cast<float>(number_in(key, 1e-12, 0.1, fallback));
}

std::vector<std::string> JsonConfig::unread() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json_->items()) {
    const bool says_nothing = value.is_null() || ((value.is_structured() || value.is_string()) && value.empty());
    if (!key.starts_with('_') && !says_nothing && !read_->contains(key)) keys.push_back(key);
  }
  return keys;
}

bool JsonConfig::boolean(const std::string& key) const {
  const Json& value = at(key, "true or false");
  if (!value.is_boolean()) fail(key, expectation("true or false", value));
  return value.get<bool>();
}

bool JsonConfig::boolean(const std::string& key, bool fallback) const {
  return has(key) ? boolean(key) : fallback;
}

std::string JsonConfig::string(const std::string& key) const {
  const Json& value = at(key, "a string");
  if (!value.is_string()) fail(key, expectation("a string", value));
  return value.get<std::string>();
}

std::string JsonConfig::string(const std::string& key, const std::string& fallback) const {
  return has(key) ? string(key) : fallback;
}

std::vector<int64_t> JsonConfig::integers(const std::string& key) const {
  const char* expected = "a list of integers";
  const Json& value = at(key, expected);
  if (!value.is_array()) fail(key, expectation(expected, value));
  std::vector<int64_t> result;
  for (const Json& element : value) {
    if (!is_int64(element)) fail(key, expectation(expected, value));
    result.push_back(element.get<int64_t>());
  }
  return result;
}

std::vector<int64_t> JsonConfig::integers(const std::string& key, std::vector<int64_t> fallback) const {
  return has(key) ? integers(key) : std::move(fallback);
}

std::vector<double> JsonConfig::numbers(const std::string& key) const {
  const char* expected = "a list of numbers";
  const Json& value = at(key, expected);
  if (!value.is_array()) fail(key, expectation(expected, value));
  std::vector<double> result;
  for (const Json& element : value) {
    if (!element.is_number()) fail(key, expectation(expected, value));
    result.push_back(element.get<double>());
  }
  return result;
}

std::vector<double> JsonConfig::numbers(const std::string& key, std::vector<double> fallback) const {
  return has(key) ? numbers(key) : std::move(fallback);
}

std::vector<bool> JsonConfig::booleans(const std::string& key) const {
  const char* expected = "a list of true and false";
  const Json& value = at(key, expected);
  if (!value.is_array()) fail(key, expectation(expected, value));
  std::vector<bool> result;
  for (const Json& element : value) {
    if (!element.is_boolean()) fail(key, expectation(expected, value));
    result.push_back(element.get<bool>());
  }
  return result;
}

std::vector<bool> JsonConfig::booleans(const std::string& key, std::vector<bool> fallback) const {
  return has(key) ? booleans(key) : std::move(fallback);
}

JsonConfig JsonConfig::object(const std::string& key) const {
  const Json& value = at(key, "an object");
  if (!value.is_object()) fail(key, expectation("an object", value));
  return {value, where_ + ": " + key};
}

}  // namespace calibatt
