// The public functions on plan files: thin, so that the command line needs include/ only.
#include "calibatt/plan.h"
#include "pictures/plan_picture.h"
#include "plan/deal_balance.h"
#include "plan/describe.h"
#include "plan/plan.h"

namespace calibatt {

std::string describe_plan(const std::string& plan_path) {
  return describe(*load_plan(plan_path));
}

std::string describe_plan_on_gpus(const std::string& plan_path, int num_gpus) {
  if (num_gpus < 1 || num_gpus > 64) {
    throw Error(ErrorKind::kUsage, std::to_string(num_gpus) + " GPUs cannot share a plan; give 1 to 64");
  }
  return describe_deals(*load_plan(plan_path), num_gpus);
}

void write_head_picture(const std::string& plan_path, int step, int layer, int head, const std::string& png_path) {
  write_png(render_head(*load_plan(plan_path), step, layer, head), png_path);
}

void write_density_picture(const std::string& plan_path, const std::string& png_path) {
  write_png(render_density_map(*load_plan(plan_path)), png_path);
}

}  // namespace calibatt
