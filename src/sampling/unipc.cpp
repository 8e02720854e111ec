#include "sampling/unipc.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace calibatt {
namespace {

/// Solves a·x = b, at most 3 × 3, by elimination with row exchange.
std::vector<double> solved(std::vector<std::vector<double>> a, std::vector<double> b) {
  const size_t n = b.size();
  for (size_t column = 0; column < n; ++column) {
    size_t pivot = column;
    for (size_t row = column + 1; row < n; ++row) {
      if (std::abs(a[row][column]) > std::abs(a[pivot][column])) pivot = row;
    }
    std::swap(a[column], a[pivot]);
    std::swap(b[column], b[pivot]);
    for (size_t row = column + 1; row < n; ++row) {
      const double factor = a[row][column] / a[column][column];
      for (size_t k = column; k < n; ++k) a[row][k] -= factor * a[column][k];
      b[row] -= factor * b[column];
    }
  }
  for (size_t row = n; row-- > 0;) {
    for (size_t k = row + 1; k < n; ++k) b[row] -= a[row][k] * b[k];
    b[row] /= a[row][row];
  }
  return b;
}

}  // namespace

double UniPCScheduler::diffusers_sigma(int step, int num_steps) const {
  // num_steps + 1 evenly spaced levels from 1 to the last training level, without that last one. In this order of
  // operations: timesteps are cut to whole numbers, and one rounding in the last place could move one by one.
  const double stride = (1 / static_cast<double>(config_.num_train_timesteps) - 1) / num_steps;
  return shifted(step * stride + 1.0);
}

void UniPCScheduler::begin(const std::vector<double>& sigmas) {
  sigmas_.clear();
  timesteps_.clear();
  for (double sigma : sigmas) {
    constexpr double kEpsilon = 1e-6;
    if (sigmas_.empty() && std::abs(sigma - 1) < kEpsilon) sigma -= kEpsilon;  // σ = 1 has λ = −∞
    timesteps_.push_back(static_cast<float>(std::trunc(sigma * config_.num_train_timesteps)));
    sigmas_.push_back(static_cast<float>(sigma));
  }
  sigmas_.push_back(config_.final_sigma_zero ? 0.0f : sigmas_.back());
  data_.clear();
  last_sample_ = {};
  last_order_ = 0;
}

double UniPCScheduler::log_snr(int step) const {
  const double sigma = sigmas_[static_cast<size_t>(step)];
  return std::log(1 - sigma) - std::log(sigma);
}

Tensor UniPCScheduler::update(int from, int order, const Tensor& sample, const std::deque<Tensor>& data,
                              const Tensor* data_at_target) const {
  const double sigma = sigmas_[static_cast<size_t>(from)], target_sigma = sigmas_[static_cast<size_t>(from) + 1];
  const double lambda = log_snr(from);
  const double h = log_snr(from + 1) - lambda;  // +∞ for σ = 0; first order copes with it
  const double decay = std::expm1(-h);          // e^−h − 1
  const double b_h = config_.basis == SchedulerConfig::Basis::kBh2 ? decay : -h;
  const double alpha = 1 - target_sigma;

  // First order: x' = σ'/σ · x − α' (e^−h − 1) m₀. Higher orders, and the corrector, subtract α' B(h) Σ ρᵢ (mᵢ −
  // m₀)/rᵢ, where mᵢ is the data prediction at λ + rᵢ·h; the corrector has one more such point, the target itself (r =
  // 1).
  const Tensor& m0 = data[0];
  double weight_m0 = -alpha * decay;
  std::vector<Term> terms{{target_sigma / sigma, &sample}, {0, &m0}};

  std::vector<double> r;
  std::vector<const Tensor*> points;
  for (int i = 1; i < order; ++i) {
    r.push_back((log_snr(from - i) - lambda) / h);
    points.push_back(&data[static_cast<size_t>(i)]);
  }
  if (data_at_target != nullptr) {
    r.push_back(1.0);
    points.push_back(data_at_target);
  }

  const size_t n = points.size();
  std::vector<double> rho;
  if (n == 1) {
    rho = {0.5};  // the simplification that the paper gives for one point
  } else if (n > 1) {
    // Rows k = 1 … n:  Σ ρᵢ rᵢ^(k−1) = k! φ_{k+1}(−h)·… / B(h), with φ by its recurrence.
    std::vector<std::vector<double>> powers(n, std::vector<double>(n));
    std::vector<double> right(n);
    double phi = decay / -h - 1, factorial = 1;
    for (size_t k = 0; k < n; ++k) {
      for (size_t i = 0; i < n; ++i) powers[k][i] = std::pow(r[i], static_cast<double>(k));
      right[k] = phi * factorial / b_h;
      factorial *= static_cast<double>(k + 2);
      phi = phi / -h - 1 / factorial;
    }
    rho = solved(powers, right);
  }
  for (size_t i = 0; i < n; ++i) {
    const double weight = -alpha * b_h * rho[i] / r[i];
    terms.push_back({weight, points[i]});
    weight_m0 -= weight;
  }
  terms[1].weight = weight_m0;
  return weighted_sum(terms);
}

Tensor UniPCScheduler::advance(const Tensor& model_output, const Tensor& sample) {
  const double sigma = sigmas_[static_cast<size_t>(step_index_)];
  Tensor data = weighted_sum({{1.0, &sample}, {-sigma, &model_output}});  // x − σ (noise − data) = data

  const auto& disabled = config_.disable_corrector;
  const bool correct =
      step_index_ > 0 && std::find(disabled.begin(), disabled.end(), step_index_ - 1) == disabled.end();
  Tensor corrected = correct ? update(step_index_ - 1, last_order_, last_sample_, data_, &data) : sample;

  data_.push_front(std::move(data));
  if (static_cast<int>(data_.size()) > config_.solver_order) data_.pop_back();

  int order = std::min(config_.solver_order, step_index_ + 1);  // as many predictions as there are
  if (config_.lower_order_final) order = std::min(order, num_steps() - step_index_);
  const float next_sigma = sigmas_[static_cast<size_t>(step_index_) + 1];
  if (next_sigma == 0.0f || next_sigma == sigmas_[static_cast<size_t>(step_index_)])
    order = 1;  // h is infinite, or zero

  last_sample_ = std::move(corrected);
  last_order_ = order;
  return update(step_index_, order, last_sample_, data_, nullptr);
}

}  // namespace calibatt
