#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace calibatt {

/// Parses JSON from outside: bounded nesting (64 levels), no key twice in one object, valid UTF-8, nothing after the
/// end. Throws Error(kFormat), beginning with `where`.
nlohmann::json parse_json(std::string_view text, const std::string& where);

/// A configuration object (config.json, scheduler_config.json, …) read key by key. Every getter throws Error(kFormat)
/// in the form `FILE: key "…": expected …, found …`. A key that is absent, or null, has the fallback's value where one
/// is given and is an error where none is.
class JsonConfig {
 public:
  static JsonConfig load(const std::string& path);  ///< throws Error(kNotFound / kUnreadable / kFormat)
  JsonConfig(const nlohmann::json& object, std::string where);

  bool has(const std::string& key) const;  ///< present and not null
  int64_t integer(const std::string& key) const;
  int64_t integer(const std::string& key, int64_t fallback) const;
  /// The same, and within [min, max].
  double number_in(const std::string& key, double min, double max, double fallback) const;
  int integer_in(const std::string& key, int64_t min, int64_t max) const;
  int integer_in(const std::string& key, int64_t min, int64_t max, int64_t fallback) const;
  /// What a normalisation adds to a variance: above 0, or a row of zeros becomes NaN, and small.
  float epsilon(const std::string& key, double fallback) const;
  double number(const std::string& key) const;
  double number(const std::string& key, double fallback) const;
  bool boolean(const std::string& key) const;
  bool boolean(const std::string& key, bool fallback) const;
  std::string string(const std::string& key) const;
  std::string string(const std::string& key, const std::string& fallback) const;
  std::vector<int64_t> integers(const std::string& key) const;
  std::vector<int64_t> integers(const std::string& key, std::vector<int64_t> fallback) const;
  std::vector<double> numbers(const std::string& key) const;
  std::vector<double> numbers(const std::string& key, std::vector<double> fallback) const;
  std::vector<bool> booleans(const std::string& key) const;
  std::vector<bool> booleans(const std::string& key, std::vector<bool> fallback) const;
  JsonConfig object(const std::string& key) const;

  /// Keys that nobody asked for, neither null nor empty: what the file says and no reader of it (or of a copy of this
  /// object) understands. Without the notes of the program that wrote it, whose keys begin with an underscore.
  std::vector<std::string> unread() const;

  const nlohmann::json& json() const { return *json_; }
  const std::string& where() const { return where_; }  ///< the file, for messages
  /// Error(kFormat): `FILE: key "…": <message>`.
  [[noreturn]] void fail(const std::string& key, const std::string& message) const;

 private:
  const nlohmann::json& at(const std::string& key, const char* expected) const;
  std::shared_ptr<const nlohmann::json> json_;
  std::shared_ptr<std::set<std::string>> read_ = std::make_shared<std::set<std::string>>();
  std::string where_;
};

}  // namespace calibatt
