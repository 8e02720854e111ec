#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "calibatt/pipeline.h"
#include "serve/jobs.h"
#include "serve/request/form_fields.h"

namespace calibatt::serve {

/// A model or plan under the name by which requests call it.
struct ServedModel {
  std::string name;
  LoadOptions load;
};
struct ServedPlan {
  std::string name, path;
};

/// The most that one video may be.
struct VideoLimits {
  int64_t max_pixels = 0;  ///< width × height × frames; 0: four times the model's default video
  int max_steps = 100;
};

/// What is served, and what requests mean by it. The models' settings are read, their weights are not. Any thread may
/// call any function.
class Catalog {
 public:
  /// defaults: what requests do not say. Throws Error for a model or plan that cannot be read, for defaults that a
  /// model, this machine or the limits do not allow, for a plan that fits no model or not the video that is made where
  /// a request says nothing, and for two of one name.
  Catalog(std::vector<ServedModel> models, std::vector<ServedPlan> plans, GenerateOptions defaults,
          const VideoLimits& limits);

  /// A request's fields, checked, with every default filled in. Throws ApiError(400) naming the field, with the code
  /// plan_mismatch where a plan was made for another video or model; whether for other weights shows when it is made.
  NewJob job_of(FormFields form) const;
  /// The run of a request. Throws Error(kNotFound) for a model or plan that is not served any more.
  GenerateOptions options_of(const VideoRequest& request) const;
  /// Throws Error(kNotFound).
  const LoadOptions& load_options(const std::string& model) const;
  const std::string& first_model() const { return models_.front().name; }
  /// Why a request of an earlier start cannot be made by this one, in one line; empty: it can.
  std::string why_not(const VideoRequest& request) const;

  /// As GET /v1/models answers: one JSON object, or of one model. Throws ApiError(404).
  std::string list_reply() const;
  std::string model_reply(const std::string& name) const;

 private:
  struct Model {
    std::string name;
    LoadOptions load;
    std::unique_ptr<ModelOnDisk> files;
    GenerateOptions defaults;        ///< resolved
    std::vector<std::string> plans;  ///< those that were made for a model of its shape
  };

  const Model& model_named(const std::string& name) const;  ///< throws ApiError
  const ServedPlan* find_plan(const std::string& name) const;
  GenerateOptions with_fields(const Model& model, const FormFields& form) const;
  void choose_plan(VideoRequest& request, const FormFields& form) const;
  void check_defaults(const Model& model) const;
  void check_plans();
  void check_steps(const FormFields& form) const;
  void check_limits(const Model& model, const GenerateOptions& resolved) const;
  void check_plan_of(const VideoRequest& request, const Model& model) const;

  std::vector<Model> models_;
  std::vector<ServedPlan> plans_;
  GenerateOptions defaults_;
  VideoLimits limits_;
};

/// A message about a flag of the command line, in the words of a request: "--video-frames 8: …" → "num_frames 8: …".
/// `field`: the first field that it names, else empty.
std::string in_fields(std::string message, std::string& field);

}  // namespace calibatt::serve
