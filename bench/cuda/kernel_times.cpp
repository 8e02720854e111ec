// Every kernel, copy and fill of a program by CUPTI, with the device's own times: loaded into it by
//   CUDA_INJECTION64_PATH=libcalibatt_kernel_times.so CALIBATT_KERNEL_TIMES=FILE PROGRAM …
// One line each in FILE, in the order of their ends: start and duration in nanoseconds, blocks, threads of a block,
// registers of a thread, name. kernel_times.py reads it.
#include <cupti.h>
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace {

constexpr size_t kBufferBytes = size_t{8} << 20;
std::FILE* output = nullptr;

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* max_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(64, kBufferBytes));
  *size = *buffer != nullptr ? kBufferBytes : 0;
  *max_records = 0;
}

const std::string& demangled(const char* name) {
  static std::map<std::string, std::string> known;
  const auto [found, is_new] = known.try_emplace(name);
  if (is_new) {
    int status = 0;
    char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
    found->second = status == 0 ? text : name;
    std::free(text);
  }
  return found->second;
}

void write_record(const CUpti_Activity& record) {
  const auto line = [](uint64_t start, uint64_t end, long long blocks, long long threads, int registers,
                       const char* name) {
    std::fprintf(output, "%llu %llu %lld %lld %d %s\n", static_cast<unsigned long long>(start),
                 static_cast<unsigned long long>(end - start), blocks, threads, registers, name);
  };
  if (record.kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
    const auto& kernel = reinterpret_cast<const CUpti_ActivityKernel10&>(record);
    line(kernel.start, kernel.end, 1LL * kernel.gridX * kernel.gridY * kernel.gridZ,
         1LL * kernel.blockX * kernel.blockY * kernel.blockZ, kernel.registersPerThread,
         demangled(kernel.name).c_str());
  } else if (record.kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
    const auto& copy = reinterpret_cast<const CUpti_ActivityMemcpy6&>(record);
    line(copy.start, copy.end, static_cast<long long>(copy.bytes), 0, 0, "copy");
  } else if (record.kind == CUPTI_ACTIVITY_KIND_MEMSET) {
    const auto& fill = reinterpret_cast<const CUpti_ActivityMemset4&>(record);
    line(fill.start, fill.end, static_cast<long long>(fill.bytes), 0, 0, "fill");
  }
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) write_record(*record);
  std::free(buffer);
}

void finish() {
  static_cast<void>(cuptiActivityFlushAll(1));
  std::fclose(output);
}

}  // namespace

extern "C" int InitializeInjection() {
  const char* path = std::getenv("CALIBATT_KERNEL_TIMES");
  output = path != nullptr ? std::fopen(path, "w") : nullptr;
  if (output == nullptr) return 0;
  const bool enabled = cuptiActivityRegisterCallbacks(give_buffer, take_buffer) == CUPTI_SUCCESS &&
                       cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) == CUPTI_SUCCESS &&
                       cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY) == CUPTI_SUCCESS &&
                       cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET) == CUPTI_SUCCESS;
  if (!enabled) std::fprintf(stderr, "CUPTI: kernels cannot be recorded\n");
  std::atexit(finish);
  return 1;
}
