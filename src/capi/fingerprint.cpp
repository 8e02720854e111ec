#include "calibatt/c_api.h"
#include "capi/guarded.h"
#include "model_settings/folder_fingerprint.h"

calibatt_status calibatt_fingerprint(const char* folder, const char* like, char** fingerprint) {
  using namespace calibatt;
  using namespace calibatt::capi;
  return guarded([&] {
    required(folder, "folder");
    required(fingerprint, "fingerprint");
    *fingerprint = copied(folder_fingerprint(folder, like != nullptr ? like : ""));
  });
}
