#include "base/mapped_ranges.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

#include "base/error.h"

namespace calibatt {

/// What the signal handler knows of a range. Slots are never freed, so that it can walk them without a lock.
struct MappedRange::Slot {
  std::atomic<uintptr_t> begin{0}, end{0};  ///< both 0: nobody's
  std::atomic<bool> failed{false};
  Slot* next = nullptr;
};

namespace {

std::atomic<int> num_failed{0};  ///< of the ranges that live
struct sigaction previous_action;
uintptr_t page_bytes = 4096;

/// Behind functions: ranges may live until the process ends.
std::mutex& registry_mutex() {
  static auto* const mutex = new std::mutex;
  return *mutex;
}
std::set<const MappedRange*>& registry() {
  static auto* const ranges = new std::set<const MappedRange*>;
  return *ranges;
}

/// In a signal handler: what was there before ours.
void call_previous(int signal, siginfo_t* info, void* context) {
  if ((previous_action.sa_flags & SA_SIGINFO) != 0 && previous_action.sa_sigaction != nullptr) {
    previous_action.sa_sigaction(signal, info, context);
  } else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
    previous_action.sa_handler(signal);
  } else if (info->si_code > 0 || previous_action.sa_handler == SIG_DFL) {
    ::signal(signal, SIG_DFL);                // the load that failed is tried again, and ends the process
    if (info->si_code <= 0) ::raise(signal);  // sent by a process: there is no such load
  }
}

}  // namespace

/// The part of the class that runs in the signal handler.
struct MappedRangeHandler {
  static inline std::atomic<MappedRange::Slot*> first{nullptr};

  /// Puts zeros in place of what cannot be read. False when the address is of no mapped file.
  static bool repair(uintptr_t address) {
    for (MappedRange::Slot* slot = first.load(); slot != nullptr; slot = slot->next) {
      const uintptr_t begin = slot->begin.load(), end = slot->end.load();
      if (address < begin || address >= end) continue;
      // All that follows, too: of a file that was cut short a page at a time would need as many mappings.
      const uintptr_t page = address / page_bytes * page_bytes;
      // NOLINTNEXTLINE(performance-no-int-to-ptr): a signal tells the address as a number
      void* const zeros = mmap(reinterpret_cast<void*>(page), end - page, PROT_READ,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
      if (zeros == MAP_FAILED) return false;
      if (!slot->failed.exchange(true)) num_failed.fetch_add(1);
      return true;
    }
    return false;
  }

  static void handle(int signal, siginfo_t* info, void* context) {
    const int code = errno;
    const bool repaired = info->si_code == BUS_ADRERR && repair(reinterpret_cast<uintptr_t>(info->si_addr));
    errno = code;
    if (!repaired) call_previous(signal, info, context);
  }

  static void install() {
    static const bool once = [] {
      page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
      struct sigaction action {};
      action.sa_sigaction = handle;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
      sigemptyset(&action.sa_mask);
      return sigaction(SIGBUS, &action, &previous_action) == 0;
    }();
    static_cast<void>(once);
  }

  /// A slot that is free, or a new one. Called under the registry's lock.
  static MappedRange::Slot* take() {
    for (MappedRange::Slot* slot = first.load(); slot != nullptr; slot = slot->next) {
      if (slot->end.load() == 0) return slot;
    }
    auto* const slot = new MappedRange::Slot;
    slot->next = first.load();
    first.store(slot);
    return slot;
  }
};

MappedRange::MappedRange(const void* begin, size_t size_bytes, std::string path)
    : path_(std::move(path)), size_bytes_(size_bytes) {
  MappedRangeHandler::install();
  const std::lock_guard lock(registry_mutex());
  registry().insert(this);
  slot_ = MappedRangeHandler::take();
  slot_->failed.store(false);
  slot_->begin.store(reinterpret_cast<uintptr_t>(begin));
  slot_->end.store(reinterpret_cast<uintptr_t>(begin) + size_bytes);
}

MappedRange::~MappedRange() {
  const std::lock_guard lock(registry_mutex());
  slot_->begin.store(UINTPTR_MAX);  // first: nothing is below the end and from here on
  slot_->end.store(0);
  if (slot_->failed.load()) num_failed.fetch_sub(1);
  registry().erase(this);
}

void MappedRange::require_readable() const {
  if (!slot_->failed.load()) return;
  struct stat status {};
  std::string reason = "its disk or network stopped to deliver it; copy it anew, or to another disk";
  if (stat(path_.c_str(), &status) != 0) {
    reason = "it was removed or its disk is gone; fetch it again";
  } else if (static_cast<size_t>(status.st_size) < size_bytes_) {
    reason = "somebody cut it from " + std::to_string(size_bytes_) + " to " + std::to_string(status.st_size) +
             " bytes; fetch it again, and leave files alone while they are in use";
  }
  throw Error(ErrorKind::kUnreadable, path_ + ": could not be read to its end: " + reason);
}

void require_mapped_files() {
  if (num_failed.load(std::memory_order_acquire) == 0) return;
  const std::lock_guard lock(registry_mutex());
  for (const MappedRange* range : registry()) range->require_readable();
}

}  // namespace calibatt
