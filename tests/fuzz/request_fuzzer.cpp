// libFuzzer: a content type (the first line), and any bytes as the body of a request: fields within their limits, or a
// refusal.
#include <string>
#include <string_view>

#include "base/error.h"
#include "serve/request/api_error.h"
#include "serve/request/byte_range.h"
#include "serve/request/form_fields.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  using namespace calibatt::serve;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t line = std::min(input.find('\n'), input.size());
  const std::string first(input.substr(0, line));
  const std::string_view body = input.substr(std::min(line + 1, input.size()));
  try {
    const FormFields form = read_form(first, body);
    CALIBATT_ASSERT(form.values.size() <= kMaxFields && form.picture.size() <= kMaxPictureBytes);
    CALIBATT_ASSERT(form.has_picture || form.picture.empty());
    for (const auto& [name, value] : form.values) CALIBATT_ASSERT(value.size() <= kMaxFieldBytes);
  } catch (const ApiError& refusal) {
    CALIBATT_ASSERT(refusal.status >= 400 && refusal.status < 500);
  }
  try {
    const std::optional<ByteRange> range = byte_range(first, body.size());
    if (range) CALIBATT_ASSERT(range->length > 0 && range->offset + range->length <= body.size());
  } catch (const ApiError& refusal) {
    CALIBATT_ASSERT(refusal.status == 416);
  }
  return 0;
}
