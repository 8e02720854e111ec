#include "calibrate/compile/allocation.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"

namespace calibatt {

std::vector<HeadOption> convex_hull(std::vector<HeadOption> options) {
  std::sort(options.begin(), options.end(), [](const HeadOption& a, const HeadOption& b) {
    return std::tie(a.cost, a.error, a.anchored, a.level) < std::tie(b.cost, b.error, b.anchored, b.level);
  });
  std::vector<HeadOption> hull;
  for (const HeadOption& option : options) {
    if (!hull.empty()) {
      const HeadOption& last = hull.back();  // no dearer
      if (option.error > last.error || (option.error == last.error && option.cost == last.cost)) continue;
    }
    while (hull.size() >= 2) {
      const HeadOption &a = hull[hull.size() - 2], &b = hull.back();
      // b goes when the line from a to the new option runs below it.
      if ((b.error - a.error) * (option.cost - a.cost) < (option.error - a.error) * (b.cost - a.cost)) break;
      hull.pop_back();
    }
    hull.push_back(option);
  }
  return hull;
}

std::vector<HeadOption> allocate(const std::vector<std::vector<HeadOption>>& hulls, double most_cost) {
  struct Step {
    double gain;  // fall of error per cost
    size_t head, to;
  };
  std::vector<Step> steps;
  std::vector<size_t> chosen(hulls.size(), 0);
  double spent = 0;
  for (size_t head = 0; head < hulls.size(); ++head) {
    CALIBATT_ASSERT(!hulls[head].empty());
    spent += hulls[head][0].cost;
    for (size_t to = 1; to < hulls[head].size(); ++to) {
      const HeadOption &a = hulls[head][to - 1], &b = hulls[head][to];
      steps.push_back({(a.error - b.error) / (b.cost - a.cost), head, to});
    }
  }
  std::sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) {
    return a.gain != b.gain ? a.gain > b.gain : std::tie(a.head, a.to) < std::tie(b.head, b.to);
  });
  for (const Step& step : steps) {
    const double price = hulls[step.head][step.to].cost - hulls[step.head][step.to - 1].cost;
    if (chosen[step.head] + 1 != step.to || spent + price > most_cost + 1e-9) continue;
    chosen[step.head] = step.to;
    spent += price;
  }
  std::vector<HeadOption> options;
  options.reserve(hulls.size());
  for (size_t head = 0; head < hulls.size(); ++head) options.push_back(hulls[head][chosen[head]]);
  return options;
}

}  // namespace calibatt
