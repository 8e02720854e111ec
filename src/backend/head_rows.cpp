#include "backend/head_rows.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace calibatt {

ConstHeadsView source_of(const HeadRows& rows, std::span<const ConstHeadsView> offered) {
  const auto view = static_cast<size_t>(rows.view);
  const int64_t count = rows.to.num_tokens;
  if (rows.view < 0 || view >= offered.size()) {
    throw std::logic_error("rank " + std::to_string(rows.rank) + " offers " + std::to_string(offered.size()) +
                           " views of heads, view " + std::to_string(rows.view) + " is asked for");
  }
  ConstHeadsView from = offered[view];
  if (rows.first_token < 0 || rows.first_token + count > from.num_tokens || from.dtype != rows.to.dtype) {
    throw std::logic_error("rank " + std::to_string(rows.rank) + " offers " + std::to_string(from.num_tokens) +
                           " tokens in " + std::string(dtype_name(from.dtype)) + ", tokens " +
                           std::to_string(rows.first_token) + " to " + std::to_string(rows.first_token + count) +
                           " are asked for in " + std::string(dtype_name(rows.to.dtype)));
  }
  from.data = static_cast<const char*>(from.data) +
              rows.first_token * from.token_stride * static_cast<int64_t>(dtype_size(from.dtype));
  from.num_tokens = count;
  return from;
}

void copy_on_host(const HeadRows& rows, const ConstHeadsView& from, int head_dim) {
  const auto element = static_cast<int64_t>(dtype_size(from.dtype));
  const size_t row_bytes = static_cast<size_t>(head_dim) * static_cast<size_t>(element);
  for (int64_t token = 0; token < rows.to.num_tokens; ++token) {
    const char* source = static_cast<const char*>(from.data) + token * from.token_stride * element;
    char* target = static_cast<char*>(rows.to.data) + token * rows.to.token_stride * element;
    for (const HeadMove& move : rows.moves) {
      std::memcpy(target + move.to * rows.to.head_stride * element, source + move.from * from.head_stride * element,
                  row_bytes);
    }
  }
}

}  // namespace calibatt
