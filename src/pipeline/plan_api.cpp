// The public functions on plan files: thin, so that the command line needs include/ only.
#include "calibatt/plan.h"
#include "pictures/plan_picture.h"
#include "plan/describe.h"
#include "plan/plan.h"

namespace calibatt {

std::string describe_plan(const std::string& plan_path) {
  return describe(*load_plan(plan_path));
}

void write_head_picture(const std::string& plan_path, int step, int layer, int head, const std::string& png_path) {
  write_png(render_head(*load_plan(plan_path), step, layer, head), png_path);
}

void write_density_picture(const std::string& plan_path, const std::string& png_path) {
  write_png(render_density_map(*load_plan(plan_path)), png_path);
}

}  // namespace calibatt
