#pragma once

#include <string>

namespace calibatt {

/// A name for a half-written file beside its target, which no other thread of this process gets: hidden, with the
/// writer's process number, which holds a lock on its file while it writes.
std::string hidden_name(const std::string& target_name);

/// Locks a fresh hidden file; false when another process has taken it for a stale one and removed it meanwhile.
bool lock_hidden_file(int descriptor);

/// Removes the half-written files of `target_name` in `folder` whose writer is gone: nobody holds the lock, and on this
/// machine no process has the number. Never throws; what cannot be removed stays.
void remove_stale_files(const std::string& folder, const std::string& target_name);

}  // namespace calibatt
