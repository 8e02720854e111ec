#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace calibatt {

/// What errors advise where a file of PyTorch holds more than is read.
inline constexpr const char* kConvertPickle = "; load it in PyTorch and save its tensors as safetensors";

/// A value of Python's pickle format, protocol 2, as far as dictionaries of tensors need it: data alone. Nothing of it
/// is ever run; calls of functions stay what they are written as: a name and its arguments.
struct PickleValue {
  enum class Kind { kNone, kBool, kInteger, kText, kTuple, kDict, kGlobal, kCall, kPersistent };
  Kind kind = Kind::kNone;
  int64_t integer = 0;                    ///< kInteger, kBool
  std::string text;                       ///< kText; kGlobal: "module name"
  std::vector<const PickleValue*> items;  ///< kTuple; kCall: function and arguments; kPersistent: its id
  std::vector<std::pair<const PickleValue*, const PickleValue*>> entries;  ///< kDict, in order
};

/// A parsed pickle. It owns its values, which may refer to one another in any way.
class Pickle {
 public:
  /// Throws Error(kFormat), in the form `WHERE: reason; what to do`, for operations beyond this subset (naming them)
  /// and for functions other than those in `callable` ("module name"). collections.OrderedDict is a kDict.
  Pickle(std::span<const unsigned char> bytes, const std::string& where, const std::vector<std::string>& callable);
  Pickle(const Pickle&) = delete;
  Pickle& operator=(const Pickle&) = delete;

  const PickleValue& root() const { return *root_; }

 private:
  std::deque<PickleValue> values_;
  const PickleValue* root_ = nullptr;
};

}  // namespace calibatt
