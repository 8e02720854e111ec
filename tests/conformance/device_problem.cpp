#include "device_problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

namespace calibatt {
namespace {

const size_t kGuardBytes = std::getenv("CALIBATT_NO_GUARDS") != nullptr ? 0 : 4096;

void memcpy_checked(void* to, const void* from, size_t size_bytes) {
  cuda::check(cudaMemcpy(to, from, size_bytes, cudaMemcpyDefault), "copying test data");
  // A copy from pageable memory returns when it is staged, and the kernels' stream does not wait for it.
  cuda::check(cudaDeviceSynchronize(), "copying test data");
}

/// The device address of what a host view points to.
template <class View>
View moved(View view, const Tensor& storage, const GuardedBuffer& buffer) {
  const auto offset =
      static_cast<const char*>(static_cast<const void*>(view.data)) - static_cast<const char*>(storage.raw());
  view.data = static_cast<char*>(buffer.data()) + offset;
  return view;
}

}  // namespace

GuardedBuffer::GuardedBuffer(size_t size_bytes) : size_bytes_(size_bytes), buffer_(size_bytes + 2 * kGuardBytes) {
  cuda::check(cudaMemset(buffer_.data(), 0xff, buffer_.size_bytes()), "filling guards");
  cuda::check(cudaDeviceSynchronize(), "filling guards");
}

void* GuardedBuffer::data() const {
  return buffer_.as<char>() + kGuardBytes;
}

void GuardedBuffer::write(const void* host, size_t size_bytes, size_t offset) {
  memcpy_checked(static_cast<char*>(data()) + offset, host, size_bytes);
}

void GuardedBuffer::read(void* host, size_t size_bytes, size_t offset) const {
  memcpy_checked(host, static_cast<char*>(data()) + offset, size_bytes);
}

void GuardedBuffer::fill_with_ones() {
  cuda::check(cudaMemset(data(), 0xff, size_bytes_), "poisoning");
  cuda::check(cudaDeviceSynchronize(), "poisoning");
}

bool GuardedBuffer::guards_are_intact() const {
  std::vector<unsigned char> guards(2 * kGuardBytes);
  memcpy_checked(guards.data(), buffer_.data(), kGuardBytes);
  memcpy_checked(guards.data() + kGuardBytes, static_cast<char*>(data()) + size_bytes_, kGuardBytes);
  return std::ranges::all_of(guards, [](unsigned char byte) { return byte == 0xff; });
}

DeviceProblem::DeviceProblem(std::vector<AttentionProblem*> problems, bool wants_row_lse)
    : problems_(std::move(problems)) {
  AttentionProblem& first = *problems_[0];
  const auto batch = problems_.size();
  AttentionCall call = first.call();
  call.q = moved(call.q, first.q_storage(), upload_inputs(&AttentionProblem::q_storage));
  call.k = moved(call.k, first.k_storage(), upload_inputs(&AttentionProblem::k_storage));
  call.v = moved(call.v, first.v_storage(), upload_inputs(&AttentionProblem::v_storage));
  out_ = std::make_unique<GuardedBuffer>(batch * first.out_storage().size_bytes());
  call.out = moved(call.out, first.out_storage(), *out_);
  if (call.block_energy != nullptr) {
    energy_ = std::make_unique<GuardedBuffer>(batch * first.energy().size() * sizeof(float));
    call.block_energy = static_cast<float*>(energy_->data());
  }
  schedule_ = cuda::ResidentSchedule(call.heads, static_cast<int>(call.q.num_tokens),
                                     static_cast<int>(call.k.num_tokens), call.block_q, call.block_k);
  args_ = cuda::make_args(call, schedule_);
  args_.batch = static_cast<int>(batch);
  args_.q.batch_stride = first.q_storage().size();
  args_.k.batch_stride = first.k_storage().size();
  args_.v.batch_stride = first.v_storage().size();
  args_.out.batch_stride = first.out_storage().size();
  if (wants_row_lse) {
    row_lse_ = std::make_unique<GuardedBuffer>(batch * static_cast<size_t>(args_.num_heads) *
                                               static_cast<size_t>(args_.num_queries) * sizeof(float));
    args_.row_lse = static_cast<float*>(row_lse_->data());
  }
}

/// The problems' tensors behind each other, once for all views that share them.
const GuardedBuffer& DeviceProblem::upload_inputs(const Tensor& (AttentionProblem::*storage)() const) {
  const Tensor& first = (problems_[0]->*storage)();
  const auto known = std::ranges::find(inputs_, first.raw(), [](const auto& input) { return input.first; });
  if (known != inputs_.end()) return *known->second;
  const size_t size = first.size_bytes();
  auto buffer = std::make_unique<GuardedBuffer>(problems_.size() * size);
  for (size_t i = 0; i < problems_.size(); ++i) buffer->write((problems_[i]->*storage)().raw(), size, i * size);
  return *inputs_.emplace_back(first.raw(), std::move(buffer)).second;
}

void DeviceProblem::make_workspace(std::string_view kernel) {
  workspace_bytes_ = cuda::attention_workspace_bytes(args_, kernel);
  workspace_ = std::make_unique<GuardedBuffer>(workspace_bytes_);
}

void DeviceProblem::upload_outputs() {
  for (size_t i = 0; i < problems_.size(); ++i) {
    const Tensor& out = problems_[i]->out_storage();
    out_->write(out.raw(), out.size_bytes(), i * out.size_bytes());
  }
  for (GuardedBuffer* buffer : {energy_.get(), row_lse_.get()}) {
    if (buffer != nullptr) buffer->fill_with_ones();
  }
}

void DeviceProblem::download_outputs() {
  for (size_t i = 0; i < problems_.size(); ++i) {
    Tensor& out = problems_[i]->out_storage();
    out_->read(out.raw(), out.size_bytes(), i * out.size_bytes());
    if (energy_ == nullptr) continue;
    std::vector<float>& energy = problems_[i]->energy();
    energy_->read(energy.data(), energy.size() * sizeof(float), i * energy.size() * sizeof(float));
  }
  for (const GuardedBuffer* buffer : {out_.get(), energy_.get(), row_lse_.get(), workspace_.get()}) {
    EXPECT_TRUE(buffer == nullptr || buffer->guards_are_intact()) << "written outside an output or the workspace";
  }
}

std::vector<float> DeviceProblem::row_lse() const {
  std::vector<float> lse(static_cast<size_t>(args_.batch) * static_cast<size_t>(args_.num_heads) *
                         static_cast<size_t>(args_.num_queries));
  row_lse_->read(lse.data(), lse.size() * sizeof(float));
  return lse;
}

void DeviceProblem::run(std::string_view kernel) {
  make_workspace(kernel);
  upload_outputs();
  const cuda::Stream stream;
  cuda::attention(args_, workspace(), workspace_bytes(), stream.get(), kernel);
  stream.synchronize();
  download_outputs();
}

}  // namespace calibatt
