#include "pipeline/runner_group.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "backend/cpu/make_backend.h"
#include "backend/thread_ranks.h"
#include "models/registry.h"
#include "pipeline/device_backends.h"
#include "pipeline/options.h"
#include "pipeline/precision.h"

namespace calibatt {
namespace {

/// Runs `body` as ranks. What the caller's own callback throws is thrown as it is, whichever rank's error came first.
void run_heard(int num_ranks, const ProgressCallback& progress,
               const std::function<void(Communicator& hosts, const ProgressCallback& progress)>& body) {
  if (num_ranks == 1) {
    run_ranks(1, [&](Communicator& hosts) { body(hosts, progress); });
    return;
  }
  std::exception_ptr stopped;  // by the caller; the first rank's thread is the caller's
  try {
    run_ranks(num_ranks, [&](Communicator& hosts) {
      const bool heard = hosts.rank() == 0 && progress;
      body(hosts, [&, heard](const Progress& state) {
        hosts.throw_if_ended();
        if (!heard) return;
        try {
          progress(state);
        } catch (...) {
          stopped = std::current_exception();
          throw;
        }
      });
    });
  } catch (...) {
    if (stopped) std::rethrow_exception(stopped);
    throw;
  }
}

}  // namespace

void RunnerGroup::on_its_device(Runner& runner, const std::function<void()>& free) {
  try {
    runner.backend().make_current();
  } catch (const std::exception&) {  // it is lost, and its memory with it
  }
  free();
}

void RunnerGroup::DeleteOnItsDevice::operator()(Runner* runner) const {
  on_its_device(*runner, [runner] { delete runner; });
}

RunnerGroup::RunnerGroup(std::vector<std::unique_ptr<Runner>> runners) {
  for (std::unique_ptr<Runner>& runner : runners) runners_.emplace_back(runner.release());
}

RunnerGroup::RunnerGroup(const LoadOptions& options)
    : devices_(options.devices), devices_source_(options.devices_source) {
  check_devices(options);
  if (devices_.size() == 1) {
    check_weight_placement(options, ModelDescription());
    runners_.emplace_back(new Runner(options));
  } else {
    load(options);
  }
}

void RunnerGroup::load(const LoadOptions& options) {
  const std::unique_ptr<ModelFiles> files = open_model(options.model_dir, parts_of(options));
  check_precision(options, *files);  // what is wrong is said first, and once
  check_weight_placement(options, files->description());
  add_device_backends();
  std::vector<std::unique_ptr<Backend>> backends;
  for (const int device : devices_) {
    backends.push_back(make_backend(options.backend, device, devices_flag(options)));
  }
  const ChosenPlacement chosen = choose_placement(options, *files, backends);
  if (options.warn && !chosen.message.empty()) options.warn(chosen.message);
  weight_placement_ = weight_placement_name(chosen.placement);
  std::shared_ptr<WeightShards> shards;
  if (chosen.placement != WeightPlacement::kWhole) shards = std::make_shared<WeightShards>(devices_);
  runners_.resize(devices_.size());
  run_heard(num_ranks(), options.progress, [&](Communicator& hosts, const ProgressCallback& progress) {
    const auto rank = static_cast<size_t>(hosts.rank());
    LoadOptions own = options;
    own.progress = progress;
    if (rank > 0) own.warn = {};
    backends[rank]->make_current();
    runners_[rank].reset(new Runner(own, std::move(backends[rank]), {shards, hosts.rank()}));
  });
}

ChosenPlacement RunnerGroup::choose_placement(const LoadOptions& options, const ModelFiles& files,
                                              const std::vector<std::unique_ptr<Backend>>& backends) const {
  PlacementRoom room;
  const ModelDescription& model = files.description();
  room.whole = weight_bytes(files, options, 1);
  if (model.shards_weights) room.shards = weight_bytes(files, options, static_cast<int>(devices_.size()));
  room.video = options.video_bytes;
  if (room.video == 0) {
    const DType dtype = dtype_of(options.precision).value_or(DType::kBF16);
    const auto num_ranks = static_cast<int>(devices_.size()), of_branch = std::max(1, num_ranks / 2);
    const bool eight_bits = has_eight_bit_layers(options, files);
    room.video =
        files
            .memory(video_size(with_defaults({}, model)), {dtype, eight_bits, eight_bits ? 1 : 0, of_branch, num_ranks})
            .beside_weights();
  }
  for (size_t rank = 0; rank < backends.size(); ++rank) {
    Backend& backend = *backends[rank];
    if (backend.in_host_memory()) continue;
    backend.make_current();
    const uint64_t available = backend.available_memory_bytes() / ranks_on_device_of(rank);
    room.available = std::min(room.available.value_or(available), available);
    for (const int other : devices_) {
      if (backend.is_readable_by(other)) continue;
      room.unreadable =
          "GPU " + std::to_string(other) + " cannot read the memory of GPU " + std::to_string(devices_[rank]);
    }
  }
  backends.front()->make_current();
  return choose_weight_placement(options, room);
}

uint64_t RunnerGroup::ranks_on_device_of(size_t rank) const {
  uint64_t ranks = 1;
  for (size_t other = 0; other < devices_.size(); ++other) {
    if (other != rank && devices_[other] == devices_[rank]) ++ranks;
  }
  return ranks;
}

std::vector<std::string> RunnerGroup::device_kinds() const {
  std::vector<std::string> kinds;
  for (const OwnedRunner& runner : runners_) {
    const std::string kind = runner->backend().device_name();
    if (std::ranges::count(kinds, kind) == 0) kinds.push_back(kind);
  }
  return kinds;
}

void RunnerGroup::expect_prompts(const std::vector<Prompt>& prompts) {
  for (const OwnedRunner& runner : runners_) runner->expect_prompts(prompts);
}

AvailableMemory RunnerGroup::available_memory() const {
  AvailableMemory least = first().available_memory();
  if (!least.device) return least;
  for (size_t rank = 0; rank < runners_.size(); ++rank) {
    runners_[rank]->backend().make_current();
    const uint64_t sharing = ranks_on_device_of(rank);
    least.device = std::min(*least.device, *runners_[rank]->available_memory().device / sharing);
  }
  first().backend().make_current();
  return least;
}

void RunnerGroup::warn_of_memory(const GenerateOptions& options, const RankLayout& layout) {
  first().warn_of_memory(options, layout, available_memory());
}

bool RunnerGroup::devices_read_each_other() const {
  return std::ranges::all_of(runners_, [&](const OwnedRunner& owner) {
    return std::ranges::all_of(devices_, [&](int reader) { return owner->backend().is_readable_by(reader); });
  });
}

void RunnerGroup::reset_peak_memory() {
  for (const OwnedRunner& runner : runners_) runner->backend().reset_peak_memory();
}

uint64_t RunnerGroup::peak_memory_bytes() const {
  uint64_t most = 0;
  for (const OwnedRunner& runner : runners_) most = std::max<uint64_t>(most, runner->backend().peak_memory_bytes());
  return most;
}

void RunnerGroup::run(const ProgressCallback& progress, const Body& body) {
  run_heard(num_ranks(), progress, [&](Communicator& hosts, const ProgressCallback& told) {
    Runner& runner = *runners_[static_cast<size_t>(hosts.rank())];
    runner.backend().make_current();
    body(runner, hosts, told);
  });
}

}  // namespace calibatt
