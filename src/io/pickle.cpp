#include "io/pickle.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "base/error.h"
#include "calibatt/counted.h"
#include "io/mapped_tensors.h"

namespace calibatt {
namespace {

using Kind = PickleValue::Kind;

constexpr const char* kOrderedDict = "collections OrderedDict";

/// The operations that torch.save writes, by the names of Python's pickletools.
enum Operation : unsigned char {
  kMark = '(',
  kStop = '.',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinUnicode = 'X',
  kBuild = 'b',
  kGlobal = 'c',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kEmptyTuple = ')',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
};

/// The stack machine that a pickle is written for, without its calls.
class Machine {
 public:
  Machine(std::span<const unsigned char> bytes, const std::string& where, const std::vector<std::string>& callable,
          std::deque<PickleValue>& values)
      : bytes_(bytes), where_(where), callable_(callable), values_(values) {}

  const PickleValue* run() {
    while (true) {
      begin_ = at_;
      const unsigned char operation = number<unsigned char>();
      if (operation == kStop) {
        if (stack_.size() != 1) fail("it ends with " + counted(stack_.size(), "values") + " instead of one");
        return stack_.back();
      }
      step(operation);
    }
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw Error(ErrorKind::kFormat, where_ + ": at byte " + std::to_string(begin_) + " of its pickle: " + reason +
                                        "; the file is damaged or no state_dict (copy it anew)");
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorKind::kFormat, where_ + ": at byte " + std::to_string(begin_) + " of its pickle: " + what +
                                        " is not read, only plain dictionaries of tensors are" + kConvertPickle);
  }

  std::span<const unsigned char> take(size_t count) {
    if (count > bytes_.size() - at_) fail("it ends within an operation");
    at_ += count;
    return bytes_.subspan(at_ - count, count);
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string line() {
    const auto rest = bytes_.subspan(at_);
    const auto end = std::find(rest.begin(), rest.end(), '\n');
    if (end == rest.end()) fail("a name without an end");
    const auto text = take(static_cast<size_t>(end - rest.begin()) + 1);
    return {text.begin(), text.end() - 1};
  }

  PickleValue* push(Kind kind, int64_t integer = 0) {
    values_.push_back({});
    values_.back().kind = kind;
    values_.back().integer = integer;
    stack_.push_back(&values_.back());
    return &values_.back();
  }
  PickleValue* pop() {
    if (stack_.size() <= floor()) fail("it takes a value that is not there");
    PickleValue* value = stack_.back();
    stack_.pop_back();
    return value;
  }
  /// What an operation may take: down to the last mark.
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  std::vector<PickleValue*> pop_to_mark() {
    if (marks_.empty()) fail("it takes values down to a mark that is not there");
    const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<PickleValue*> values(first, stack_.end());
    stack_.erase(first, stack_.end());
    marks_.pop_back();
    return values;
  }
  void push_tuple(const std::vector<PickleValue*>& items) {
    push(Kind::kTuple)->items.assign(items.begin(), items.end());
  }
  void push_tuple_of(size_t count) {
    std::vector<PickleValue*> items(count);
    for (size_t i = count; i-- > 0;) items[i] = pop();
    push_tuple(items);
  }
  PickleValue& dict_below() {
    if (stack_.size() <= floor() || stack_.back()->kind != Kind::kDict) fail("it sets items of what is no dictionary");
    return *stack_.back();
  }
  void put(uint32_t index) {
    if (stack_.size() <= floor()) fail("it remembers a value that is not there");
    memo_[index] = stack_.back();
  }
  void get(uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) fail("it recalls the value " + std::to_string(index) + ", which it never remembered");
    stack_.push_back(found->second);
  }

  void integer_of_bytes() {
    const size_t count = number<unsigned char>();
    if (count > sizeof(int64_t)) fail("an integer of " + counted(count, "bytes"));
    const auto digits = take(count);
    uint64_t value = count > 0 && digits[count - 1] >= 0x80 ? ~uint64_t{0} : 0;
    for (size_t i = count; i-- > 0;) value = value << 8 | digits[i];
    push(Kind::kInteger, static_cast<int64_t>(value));
  }

  void call() {
    PickleValue* arguments = pop();
    PickleValue* function = pop();
    if (function->kind != Kind::kGlobal || arguments->kind != Kind::kTuple) fail("it calls what is no function");
    if (function->text == kOrderedDict) {
      if (!arguments->items.empty()) refuse("an OrderedDict with arguments");
      push(Kind::kDict);
      return;
    }
    if (std::find(callable_.begin(), callable_.end(), function->text) == callable_.end()) {
      refuse("a call of " + quoted_name(function->text));
    }
    PickleValue* result = push(Kind::kCall);
    result->items.push_back(function);
    result->items.insert(result->items.end(), arguments->items.begin(), arguments->items.end());
  }

  void step(unsigned char operation) {
    if (push_value(operation) || build_container(operation) || use_memo(operation)) return;
    char code[16];
    std::snprintf(code, sizeof(code), "0x%02x", operation);
    refuse(std::string("the operation ") + code);
  }

  // Each does the operation if it is one of its own, and says whether it is.

  bool push_value(unsigned char operation) {
    switch (operation) {
      case kNone:
        push(Kind::kNone);
        return true;
      case kNewTrue:
      case kNewFalse:
        push(Kind::kBool, operation == kNewTrue ? 1 : 0);
        return true;
      case kBinInt:
        push(Kind::kInteger, number<int32_t>());
        return true;
      case kBinInt1:
        push(Kind::kInteger, number<uint8_t>());
        return true;
      case kBinInt2:
        push(Kind::kInteger, number<uint16_t>());
        return true;
      case kLong1:
        integer_of_bytes();
        return true;
      case kBinUnicode: {
        const auto text = take(number<uint32_t>());
        push(Kind::kText)->text.assign(text.begin(), text.end());
        return true;
      }
      case kGlobal: {
        const std::string module = line();
        push(Kind::kGlobal)->text = module + " " + line();
        return true;
      }
      case kBinPersId: {
        const PickleValue* id = pop();
        push(Kind::kPersistent)->items.push_back(id);
        return true;
      }
      default:
        return false;
    }
  }

  bool build_container(unsigned char operation) {
    switch (operation) {
      case kMark:
        marks_.push_back(stack_.size());
        return true;
      case kEmptyTuple:
        push(Kind::kTuple);
        return true;
      case kTuple1:
      case kTuple2:
      case kTuple3:
        push_tuple_of(static_cast<size_t>(operation - kTuple1) + 1);
        return true;
      case kTuple:
        push_tuple(pop_to_mark());
        return true;
      case kEmptyDict:
        push(Kind::kDict);
        return true;
      case kSetItem: {
        PickleValue* value = pop();
        PickleValue* key = pop();
        dict_below().entries.emplace_back(key, value);
        return true;
      }
      case kSetItems: {
        const std::vector<PickleValue*> items = pop_to_mark();
        if (items.size() % 2 != 0) fail("a key without a value");
        PickleValue& dict = dict_below();
        for (size_t i = 0; i < items.size(); i += 2) dict.entries.emplace_back(items[i], items[i + 1]);
        return true;
      }
      case kReduce:
        call();
        return true;
      case kBuild:
        // Attributes of an OrderedDict: torch notes the versions of its modules there, nothing of the tensors.
        if (const PickleValue* state = pop(); state->kind != Kind::kDict) refuse("an object with a state of its own");
        if (stack_.size() <= floor() || stack_.back()->kind != Kind::kDict) refuse("an object with a state of its own");
        return true;
      default:
        return false;
    }
  }

  bool use_memo(unsigned char operation) {
    switch (operation) {
      case kProto:
        if (const int version = number<unsigned char>(); version != 2) {
          refuse("pickle protocol " + std::to_string(version));
        }
        return true;
      case kBinPut:
        put(number<uint8_t>());
        return true;
      case kLongBinPut:
        put(number<uint32_t>());
        return true;
      case kBinGet:
        get(number<uint8_t>());
        return true;
      case kLongBinGet:
        get(number<uint32_t>());
        return true;
      default:
        return false;
    }
  }

  std::span<const unsigned char> bytes_;
  const std::string& where_;
  const std::vector<std::string>& callable_;
  std::deque<PickleValue>& values_;
  size_t at_ = 0, begin_ = 0;
  std::vector<PickleValue*> stack_;
  std::vector<size_t> marks_;
  std::map<uint32_t, PickleValue*> memo_;
};

}  // namespace

Pickle::Pickle(std::span<const unsigned char> bytes, const std::string& where,
               const std::vector<std::string>& callable) {
  root_ = Machine(bytes, where, callable, values_).run();
}

}  // namespace calibatt
