#include "serve/request/form_fields.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <vector>

#include "serve/request/api_error.h"
#include "serve/request/multipart.h"

namespace calibatt::serve {
namespace {

using Json = nlohmann::json;

void put(FormFields& form, const std::string& name, std::string value) {
  if (value.size() > kMaxFieldBytes) {
    throw ApiError(413, "a field is longer than " + std::to_string(kMaxFieldBytes) + " bytes", name);
  }
  if (form.values.size() >= kMaxFields) throw ApiError(400, "the request has more than 64 fields");
  if (!form.values.emplace(name, std::move(value)).second) {
    throw ApiError(400, "the field is given twice; give it once", name);
  }
}

/// One object of plain values. Nothing is nested in a request, so nothing nested is ever held.
class FlatObject : public nlohmann::json_sax<Json> {
 public:
  explicit FlatObject(FormFields& form) : form_(form) {}

  bool null() override { return open_ || not_flat(); }
  bool boolean(bool value) override { return add(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return add(std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override { return add(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { return add(text); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return not_flat(); }
  bool start_object(std::size_t) override {
    if (open_) return not_flat();
    return open_ = true;
  }
  bool start_array(std::size_t) override { return not_flat(); }
  bool end_object() override { return true; }
  bool end_array() override { return not_flat(); }
  bool key(string_t& name) override {
    key_ = name;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    std::string reason = error.what();
    if (const size_t end = reason.find("] "); end != std::string::npos) reason = reason.substr(end + 2);
    throw ApiError(400, "the body is not valid JSON: " + reason.substr(0, 200));
  }

 private:
  bool add(std::string value) {
    if (!open_) return not_flat();
    put(form_, key_, std::move(value));
    return true;
  }
  [[noreturn]] bool not_flat() const {
    if (!open_) throw ApiError(400, "the body must be a JSON object, such as {\"prompt\": \"a cat\"}");
    throw ApiError(400, "must be a string or a number, not an object or a list", key_);
  }

  FormFields& form_;
  std::string key_;
  bool open_ = false;
};

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char letter) { return std::tolower(letter); });
  return text;
}

FormFields read_multipart(const std::string& content_type, std::string_view body) {
  FormFields form;
  for (const MultipartPart& part : read_parts(content_type, body)) {
    if (part.name != "input_reference") {
      if (part.is_file) throw ApiError(400, "is a file; input_reference alone may be one", part.name);
      put(form, part.name, std::string(part.content));
      continue;
    }
    if (form.has_picture) throw ApiError(400, "the field is given twice; give it once", part.name);
    if (!part.is_file) {
      throw ApiError(400, "must be a picture as a file of the form (multipart/form-data with a filename)", part.name);
    }
    if (part.content.size() > kMaxPictureBytes) throw ApiError(413, "the picture is larger than 16 MiB", part.name);
    form.has_picture = true;
    form.picture = part.content;
  }
  return form;
}

}  // namespace

FormFields read_form(const std::string& content_type, std::string_view body) {
  const std::string kind = lower(content_type.substr(0, content_type.find(';')));
  if (kind.starts_with("multipart/form-data")) return read_multipart(content_type, body);
  if (!kind.empty() && kind.find("json") == std::string::npos) {
    throw ApiError(415, "send the request as application/json or multipart/form-data");
  }
  FormFields form;
  FlatObject object(form);
  Json::sax_parse(body, &object);
  return form;
}

}  // namespace calibatt::serve
