// The session functions of calibatt/c_api.h.
#include "capi/arguments.h"
#include "capi/guarded.h"
#include "capi/plan.h"
#include "capi/session.h"

using namespace calibatt;
using namespace calibatt::capi;

int32_t calibatt_abi_version(void) {
  return CALIBATT_ABI_VERSION;
}

const char* calibatt_version(void) {
  return CALIBATT_VERSION;
}

calibatt_status calibatt_cuda_available(void) {
  return guarded([] { require_cuda(); });
}

calibatt_status calibatt_session_open(const calibatt_plan* plan, const calibatt_run* run,
                                      calibatt_on_mismatch on_mismatch, calibatt_session** session) {
  return guarded([&] {
    required(session, "session");
    const calibatt_run known = taken(run, "run");
    RunDescription description = description_of(known);
    if (plan != nullptr) compare_like(description, *plan->plan);
    *session =
        new calibatt_session(plan != nullptr ? plan->plan : nullptr, plan != nullptr ? plan->checksum : std::string(),
                             description, known.device, on_mismatch_of(on_mismatch), known.reuses_steps != 0);
  });
}

void calibatt_session_close(calibatt_session* session) {
  if (session == nullptr || session->is_recording()) return;
  session->wait();
  delete session;
}

calibatt_status calibatt_session_token_order(const calibatt_session* session, int32_t* raster_of_position) {
  return guarded(
      [&] { required(session, "session").write_token_order(&required(raster_of_position, "raster_of_position")); });
}

calibatt_status calibatt_session_prediction(const calibatt_session* session, int32_t step,
                                            calibatt_prediction* prediction) {
  return guarded([&] {
    require_size(required(prediction, "prediction"), "prediction");
    *prediction = required(session, "session").prediction(step);
  });
}

calibatt_status calibatt_session_begin_forward(calibatt_session* session, int32_t step, calibatt_branch branch) {
  return guarded([&] { required(session, "session").begin_forward(step, branch_of(branch)); });
}

calibatt_status calibatt_session_workspace(const calibatt_session* session, const calibatt_call* call,
                                           size_t* workspace_bytes) {
  return guarded([&] {
    required(workspace_bytes, "workspace_bytes");
    *workspace_bytes = required(session, "session").workspace_bytes(taken(call, "call"));
  });
}

calibatt_status calibatt_session_attend(calibatt_session* session, const calibatt_call* call) {
  return guarded([&] { required(session, "session").attend(taken(call, "call")); });
}

calibatt_status calibatt_session_prefetch(calibatt_session* session, int32_t step, int32_t layer) {
  return guarded([&] { required(session, "session").prefetch(step, layer); });
}

int32_t calibatt_session_wants_output(const calibatt_session* session) {
  int32_t wants = 0;
  const calibatt_status status = guarded([&] { wants = required(session, "session").wants_output() ? 1 : 0; });
  return status == CALIBATT_OK ? wants : 0;
}

calibatt_status calibatt_session_json(const calibatt_session* session, char** json) {
  return guarded([&] {
    required(json, "json");
    *json = copied(required(session, "session").json());
  });
}
