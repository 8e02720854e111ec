#include "arguments.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "calibatt/error.h"
#include "known_flags.h"
#include "text.h"

namespace calibatt::cli {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::kUsage, message);
}

/// Levenshtein's distance, where two letters that changed places count once.
size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> before_last, last(b.size() + 1), now(b.size() + 1);
  std::iota(last.begin(), last.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      now[j] = std::min({last[j] + 1, now[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        now[j] = std::min(now[j], before_last[j - 2] + 1);
    }
    before_last = std::exchange(last, now);
  }
  return last[b.size()];
}

/// The nearest of `names`; empty where none is near.
std::string nearest(const std::string& typed, const std::vector<std::string>& names) {
  std::string best;
  size_t least = std::max<size_t>(2, typed.size() / 3) + 1;
  if (typed.size() > 40) return best;
  for (const std::string& name : names) {
    const size_t each = distance(typed, name);
    if (each < least) {
      least = each;
      best = name;
    }
  }
  return best;
}

std::vector<std::string> flags_of(const CLI::App& command) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  return flags;
}

const CLI::Option* find_flag(const CLI::App& command, const std::string& name) {
  return name.size() > 1 && name[0] == '-' ? command.get_option_no_throw(name) : nullptr;
}

/// One subcommand's arguments, read from left to right.
class Reader {
 public:
  Reader(const CLI::App& app, const CLI::App& command, const std::vector<std::string>& arguments)
      : app_(app), command_(command), arguments_(arguments) {}

  std::vector<std::string> read() {
    while (next_ < arguments_.size()) {
      const std::string argument = arguments_[next_++];
      if (argument == "--") {
        out_.push_back(argument);
        while (next_ < arguments_.size()) out_.push_back(arguments_[next_++]);
      } else if (argument.size() > 1 && argument[0] == '-') {
        flag(argument);
      } else if (argument.empty()) {
        refuse("an argument of calibatt " + command_.get_name() + " is empty (a shell variable that is not set?)");
      } else {
        out_.push_back(argument);
      }
    }
    for (const std::string& note : notes_) std::fprintf(stderr, "calibatt: %s\n", printable(note).c_str());
    return std::move(out_);
  }

 private:
  void hint(const std::string& theirs, const std::string& ours) { notes_.push_back(theirs + " is " + ours + " here"); }

  void flag(const std::string& argument) {
    const bool is_long = argument[1] == '-';
    const size_t equals = is_long ? argument.find('=') : std::string::npos;
    std::string name = is_long ? argument.substr(0, equals) : argument.substr(0, 2);
    attached_ = is_long ? (equals == std::string::npos ? "" : argument.substr(equals + 1)) : argument.substr(2);
    is_attached_ = is_long ? equals != std::string::npos : argument.size() > 2;
    typed_ = name;
    if (const CLI::Option* option = find_flag(command_, name)) return known(*option, name);
    std::string hyphens = name;
    std::replace(hyphens.begin() + 1, hyphens.end(), '_', '-');
    if (const CLI::Option* option = find_flag(command_, hyphens)) {
      hint(name, hyphens);
      return known(*option, hyphens);
    }
    const KnownFlag* foreign = known_flag(name);
    if (foreign == nullptr || !translate(*foreign, name)) unknown(name);
  }

  /// Copies a flag of ours and its values.
  void known(const CLI::Option& option, const std::string& name) {
    const int wanted = option.get_items_expected_min();
    out_.push_back(name);
    if (wanted == 0) {
      if (is_attached_) refuse(name + " takes no value; leave out \"" + shown(attached_) + "\"");
      return;
    }
    std::string all;
    for (int i = 0; i < wanted; ++i) all += (i > 0 ? " " : "") + out_.emplace_back(value_of(name));
    told(option, typed_ + " " + shown(all), all);
  }

  /// Of our own flags the last one counts; a flag of another program beside ours, with another value, is a mistake.
  void told(const CLI::Option& option, const std::string& words, const std::string& value) {
    const Told now{words, value, known_flag(typed_) == nullptr || find_flag(command_, typed_) != nullptr};
    const auto before = told_.find(&option);
    if (before != told_.end() && !(before->second.ours && now.ours) && before->second.value != value) {
      refuse(before->second.words + " and " + words + " both say what " + option.get_name() +
             " is here; leave one of them out");
    }
    told_[&option] = now;
  }

  std::string value_of(const std::string& name) {
    std::string value;
    if (std::exchange(is_attached_, false)) {
      value = attached_;
    } else {
      if (next_ == arguments_.size()) refuse(name + " needs a value after it");
      value = arguments_[next_++];
      if (find_flag(command_, value) != nullptr) {
        refuse(name + " needs a value, but " + value + " follows (a shell variable that is not set?)");
      }
    }
    // A prompt may be empty; everything else was meant to be something.
    if (value.empty() && name != "-p" && name != "--prompt" && name != "-n" && name != "--negative-prompt") {
      refuse(name + " is empty (a shell variable that is not set?); give a value, or leave the flag out");
    }
    return value;
  }

  bool translate(const KnownFlag& foreign, const std::string& name) {
    const std::string ours(foreign.ours);
    using enum KnownFlag::Meaning;
    switch (foreign.meaning) {
      case kRenamed: {
        const CLI::Option* option = find_flag(command_, ours);
        if (option == nullptr) return false;
        hint(name, ours);
        known(*option, ours);
        return true;
      }
      case kSize:
        return size(name);
      case kSwitch: {
        if (find_flag(command_, ours) == nullptr) return false;
        hint(name, ours + " (without a value)");
        if (switch_value(name, "; here it is " + ours + " alone") == 1) out_.push_back(ours);
        return true;
      }
      case kTask: {
        const std::string task = value_of(name);
        if (!task.starts_with("t2v") && !task.starts_with("i2v")) {
          refuse(name + " " + shown(task) + ": this version makes videos from text, or from text and a first picture");
        }
        notes_.emplace_back("--task is not needed: --model says what it is");
        return true;
      }
      case kNotNeeded:
        if (switch_value(name, "") == 1) pass_over(name, ours);
        return true;
      case kAnswered:
        if (is_harmless(foreign.harmless, name)) {
          pass_over(name, ours);
          return true;
        }
        refuse(name + " has no counterpart here: " + ours);
    }
    return false;
  }

  void pass_over(const std::string& name, const std::string& reason) {
    notes_.push_back(name + " is not needed here and is passed over: " + reason);
  }

  /// Takes the value of a switch, which may have none: 1 or 0.
  int switch_value(const std::string& name, const std::string& remark) {
    const bool follows = next_ < arguments_.size() && boolean(arguments_[next_]) >= 0;
    if (!is_attached_ && follows) {
      attached_ = arguments_[next_++];
      is_attached_ = true;
    }
    const int on = is_attached_ ? boolean(attached_) : 1;
    if (on < 0) refuse(name + " " + shown(attached_) + ": must be true or false" + remark);
    return on;
  }

  /// Takes the value where it is one that changes nothing.
  bool is_harmless(std::string_view harmless, const std::string& name) {
    if (harmless.empty() || (!is_attached_ && next_ == arguments_.size())) return false;
    const std::string value = is_attached_ ? attached_ : arguments_[next_];
    const bool same = harmless == "false" ? boolean(value) == 0 : harmless == "*" || value == harmless;
    if (same) value_of(name);
    return same;
  }

  bool size(const std::string& name) {
    if (find_flag(command_, "--width") == nullptr) return false;
    const std::string value = value_of(name);
    const size_t times = value.find_first_of("*xX");
    const std::string width = value.substr(0, times),
                      height = times == std::string::npos ? "" : value.substr(times + 1);
    const auto is_number = [](const std::string& text) {
      return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
    };
    if (!is_number(width) || !is_number(height)) {
      refuse(name + " " + shown(value) + ": here it is -W WIDTH -H HEIGHT, for example -W 832 -H 480");
    }
    hint(name, "-W " + shown(width) + " -H " + shown(height));
    told(*find_flag(command_, "--width"), name + " " + shown(value), width);
    told(*find_flag(command_, "--height"), name + " " + shown(value), height);
    out_.insert(out_.end(), {"--width", width, "--height", height});
    return true;
  }

  /// 1 or 0 for what scripts take as true or false, else −1.
  static int boolean(std::string text) {
    for (char& letter : text) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
    if (text == "true" || text == "1" || text == "yes") return 1;
    return text == "false" || text == "0" || text == "no" ? 0 : -1;
  }

  [[noreturn]] void unknown(const std::string& name) const {
    const std::string see = "; see calibatt " + command_.get_name() + " --help";
    if (const std::string near = nearest(name, flags_of(command_)); !near.empty()) {
      refuse("there is no flag " + shown(name) + "; did you mean " + near + "? (see calibatt " + command_.get_name() +
             " --help)");
    }
    for (const CLI::App* other : app_.get_subcommands([](const CLI::App*) { return true; })) {
      if (find_flag(*other, name) != nullptr) {
        refuse(shown(name) + " is a flag of calibatt " + other->get_name() + ", not of calibatt " +
               command_.get_name() + see);
      }
    }
    refuse("there is no flag " + shown(name) + see);
  }

  const CLI::App& app_;
  const CLI::App& command_;
  const std::vector<std::string>& arguments_;
  size_t next_ = 1;  // behind the subcommand
  std::string attached_, typed_;
  bool is_attached_ = false;
  /// What an option was given as.
  struct Told {
    std::string words, value;
    bool ours = true;
  };
  std::map<const CLI::Option*, Told> told_;
  std::vector<std::string> notes_;  // told when all is understood: a refusal is one line
  std::vector<std::string> out_;
};

}  // namespace

std::vector<std::string> understood_arguments(const CLI::App& app, const std::vector<std::string>& arguments) {
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(command->get_name());
  }
  std::string listed;
  for (const std::string& name : commands) listed += (listed.empty() ? "" : ", ") + name;
  const std::string first = arguments.empty() ? "" : arguments[0];
  if (find_flag(app, first) != nullptr) return arguments;  // --help, --version
  if (std::find(commands.begin(), commands.end(), first) == commands.end()) {
    if (first.starts_with("-")) {
      refuse("a command comes before its flags: calibatt COMMAND " + shown(first) + " …, where COMMAND is one of " +
             listed + " (see calibatt --help)");
    }
    if (first == "compile") {  // as Python has it
      refuse(
          "there is no command compile: calibatt calibrate makes plans, further ones from the --profile that it filled "
          "(see calibatt calibrate --help)");
    }
    const std::string near = nearest(first, commands);
    refuse("there is no command " + shown(first) +
           (near.empty() ? "; the commands are " + listed : "; did you mean calibatt " + near + "?") +
           " (see calibatt --help)");
  }
  std::vector<std::string> result = Reader(app, *app.get_subcommand(first), arguments).read();
  result.insert(result.begin(), first);
  return result;
}

}  // namespace calibatt::cli
