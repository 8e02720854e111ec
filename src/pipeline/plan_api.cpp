// The public functions on plan files: thin, so that the command line needs include/ only.
#include "base/error.h"
#include "calibatt/plan.h"
#include "io/safetensors.h"
#include "pictures/plan_picture.h"
#include "plan/describe.h"
#include "plan/plan.h"

namespace calibatt {

std::string describe_plan(const std::string& plan_path) {
  return describe(*load_plan(plan_path));
}

std::string plan_checksum_of(const std::string& plan_path) {
  const Safetensors file = Safetensors::open(plan_path);
  const auto found = file.metadata().find("checksum");
  if (found == file.metadata().end()) throw Error(ErrorKind::kFormat, plan_path + ": is no plan; it has no checksum");
  return found->second;
}

void write_head_picture(const std::string& plan_path, int step, int layer, int head, const std::string& png_path) {
  write_png(render_head(*load_plan(plan_path), step, layer, head), png_path);
}

void write_density_picture(const std::string& plan_path, const std::string& png_path) {
  write_png(render_density_map(*load_plan(plan_path)), png_path);
}

}  // namespace calibatt
