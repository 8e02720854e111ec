#pragma once

#include <stdexcept>
#include <string>

#include "calibatt/progress.h"

namespace calibatt::cli {

/// A run that the user ended with Ctrl-C or SIGTERM. Exit code 130.
class Interrupted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// From here on the first SIGINT or SIGTERM asks the run to end soon (between two layers), and a second one ends the
/// process at once. A signal that was ignored when the program began (nohup) stays ignored.
void watch_for_interrupts();

/// Whether such a signal came.
bool interrupt_requested();

/// To be called at every step: throws Interrupted when a signal came. The message says how far the run was ("after step
/// 3 of 50"), and `what_remains`.
void stop_if_interrupted(const Progress& progress, const std::string& what_remains);

}  // namespace calibatt::cli
