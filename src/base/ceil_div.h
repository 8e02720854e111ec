#pragma once

#include <concepts>
#include <type_traits>

namespace calibatt {

/// ⌈a / b⌉ for a ≥ 0 and b > 0, in the wider of the two types.
template <std::integral A, std::integral B>
constexpr std::common_type_t<A, B> ceil_div(A a, B b) {
  static_assert(std::is_signed_v<A> == std::is_signed_v<B>, "one of the two would be converted");
  return a / b + (a % b != 0 ? 1 : 0);
}

}  // namespace calibatt
