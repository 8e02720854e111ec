#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/communicator.h"
#include "pipeline/rank_layout.h"
#include "pipeline/runner.h"
#include "pipeline/weight_placement.h"

namespace calibatt {

/// The runners of one pipeline: one for each of its devices, which make every video together as ranks. Mostly one.
class RunnerGroup {
 public:
  /// Loads the model on all devices at a time. Only the first is heard: its progress, its warnings.
  explicit RunnerGroup(const LoadOptions& options);
  explicit RunnerGroup(std::vector<std::unique_ptr<Runner>> runners);

  int num_ranks() const { return static_cast<int>(runners_.size()); }
  /// Of each rank; empty where they were given as runners.
  const std::vector<int>& devices() const { return devices_; }
  const std::string& devices_source() const { return devices_source_; }  ///< LoadOptions::devices_source
  /// RunReport::weight_placement.
  const std::string& weight_placement() const { return weight_placement_; }
  Runner& first() const { return *runners_.front(); }
  /// The names of the ranks' devices, each once.
  std::vector<std::string> device_kinds() const;
  /// Whether each rank's device can read every other's memory.
  bool devices_read_each_other() const;

  void expect_prompts(const std::vector<Prompt>& prompts);
  /// Tells the user where a video takes more memory than one of the devices has.
  void warn_of_memory(const GenerateOptions& options, const RankLayout& layout);

  /// Frees what is in a runner's memory, which is its device's. Another thread's device may be current afterwards.
  static void on_its_device(Runner& runner, const std::function<void()>& free);

  void reset_peak_memory();
  uint64_t peak_memory_bytes() const;  ///< of the device that needed most

  /// hosts: the ranks, with pieces in host memory. progress: what the rank is to tell of its work; it throws where the
  /// work is not to go on, so work that nobody else waits for must tell often.
  using Body = std::function<void(Runner& runner, Communicator& hosts, const ProgressCallback& progress)>;
  /// Calls `body` once for each rank, all at a time, the first on this thread; returns when all have ended. The first
  /// rank's progress is told to `progress`. When one throws, all end, and what it threw is thrown: what `progress`
  /// throws as it is, an Error of a device with the rank's number where there are several.
  void run(const ProgressCallback& progress, const Body& body);

 private:
  /// A runner's memory is its device's.
  struct DeleteOnItsDevice {
    void operator()(Runner* runner) const;
  };
  using OwnedRunner = std::unique_ptr<Runner, DeleteOnItsDevice>;

  void load(const LoadOptions& options);
  ChosenPlacement choose_placement(const LoadOptions& options, const ModelFiles& files,
                                   const std::vector<std::unique_ptr<Backend>>& backends) const;
  uint64_t ranks_on_device_of(size_t rank) const;
  AvailableMemory available_memory() const;

  std::vector<int> devices_;
  std::string devices_source_, weight_placement_;
  std::vector<OwnedRunner> runners_;  // [ranks]
};

}  // namespace calibatt
