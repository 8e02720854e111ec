/* The C interface as a C program meets it: calibatt/c_api.h and the C library alone.
   Usage: c_api_test PLAN FOLDER; PLAN is the worked example of docs/plan_format.md, FOLDER an empty one. */
#include <calibatt/c_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define EXPECT(condition)                                                                        \
  do {                                                                                           \
    if (!(condition)) {                                                                          \
      fprintf(stderr, "%s:%d: %s is not true; last error: %s\n", __FILE__, __LINE__, #condition, \
              calibatt_last_error());                                                            \
      ++failures;                                                                                \
    }                                                                                            \
  } while (0)
#define EXPECT_OK(call) EXPECT((call) == CALIBATT_OK)

/* ---- a reference ------------------------------------------------------------------------------------------------ */

enum { MOST_TOKENS = 64, MOST_WIDTH = 128 };

/* [tokens, heads, head_dim] without gaps. */
typedef struct {
  float q[MOST_TOKENS * MOST_WIDTH], k[MOST_TOKENS * MOST_WIDTH], v[MOST_TOKENS * MOST_WIDTH];
} inputs;

static float noise(unsigned seed) {
  seed = (seed ^ 61u) ^ (seed >> 16);
  seed *= 9u;
  seed ^= seed >> 4;
  seed *= 0x27d4eb2du;
  seed ^= seed >> 15;
  return (float)(seed & 0xffffu) / 32768.0f - 1.0f;
}

static void fill(float* values, int count, unsigned seed) {
  int i;
  for (i = 0; i < count; ++i) values[i] = noise(seed * 7919u + (unsigned)i);
}

static void fill_inputs(inputs* in, int count, unsigned seed) {
  fill(in->q, count, 3 * seed + 1);
  fill(in->k, count, 3 * seed + 2);
  fill(in->v, count, 3 * seed + 3);
}

/* A key, or what stands for a skipped block: mean key and value, counted as `count` keys. */
typedef struct {
  double key[MOST_WIDTH], value[MOST_WIDTH];
  double count;
} participant;

static void read_row(double* to, const float* from, int token, int width, int offset, int dim) {
  int i;
  for (i = 0; i < dim; ++i) to[i] = from[token * width + offset + i];
}

/* out = softmax(q kᵀ / √dim + log count) v of one query. */
static void attend_row(const double* query, const participant* all, int count, int dim, double* out) {
  double weights[MOST_TOKENS + MOST_TOKENS], sum = 0, largest = -1e300;
  int i, j;
  for (i = 0; i < count; ++i) {
    double logit = 0;
    for (j = 0; j < dim; ++j) logit += query[j] * all[i].key[j];
    weights[i] = logit / sqrt((double)dim) + log(all[i].count);
    if (weights[i] > largest) largest = weights[i];
  }
  for (j = 0; j < dim; ++j) out[j] = 0;
  for (i = 0; i < count; ++i) {
    weights[i] = exp(weights[i] - largest);
    sum += weights[i];
  }
  for (i = 0; i < count; ++i) {
    for (j = 0; j < dim; ++j) out[j] += weights[i] / sum * all[i].value[j];
  }
}

/* One head. kept: [query blocks of the computed tokens, key blocks], or NULL. */
typedef struct {
  const char* kept;
  int block, summarize;
  const int* anchors; /* computed tokens, or NULL: all */
  int num_anchors;
  const int* anchor_of;
} head_mask;

static void reference_row(const inputs* in, int query, int mask_row, const head_mask* mask, int head, int heads,
                          int dim, int keys, double* out) {
  static participant all[MOST_TOKENS + MOST_TOKENS];
  const int width = heads * dim, blocks = (keys + mask->block - 1) / mask->block;
  int count = 0, block, token, i;
  double row[MOST_WIDTH];
  for (block = 0; block < blocks; ++block) {
    const int begin = block * mask->block, end = begin + mask->block < keys ? begin + mask->block : keys;
    const int is_kept = mask->kept == NULL || mask->kept[mask_row * blocks + block];
    if (!is_kept && !mask->summarize) continue;
    if (!is_kept) memset(&all[count], 0, sizeof all[count]);
    for (token = begin; token < end; ++token) {
      if (is_kept) {
        read_row(all[count].key, in->k, token, width, head * dim, dim);
        read_row(all[count].value, in->v, token, width, head * dim, dim);
        all[count++].count = 1;
        continue;
      }
      all[count].count = end - begin;
      for (i = 0; i < dim; ++i) {
        all[count].key[i] += (double)in->k[token * width + head * dim + i] / (end - begin);
        all[count].value[i] += (double)in->v[token * width + head * dim + i] / (end - begin);
      }
    }
    if (!is_kept) ++count;
  }
  read_row(row, in->q, query, width, head * dim, dim);
  attend_row(row, all, count, dim, out);
}

/* The largest difference of a head's output from the reference. */
static double head_error(const inputs* in, const float* out, const head_mask* mask, int head, int heads, int dim,
                         int queries, int keys) {
  double largest = 0, expected[MOST_WIDTH];
  int token, i;
  for (token = 0; token < queries; ++token) {
    const int anchor = mask->anchors != NULL ? mask->anchor_of[token] : token;
    const int query = mask->anchors != NULL ? mask->anchors[anchor] : token;
    reference_row(in, query, anchor / mask->block, mask, head, heads, dim, keys, expected);
    for (i = 0; i < dim; ++i) {
      const double error = fabs(expected[i] - out[(token * heads + head) * dim + i]);
      if (!(error <= largest)) largest = error;
    }
  }
  return largest;
}

/* F32 sums of at most 64 terms of size 1. */
static const double TOLERANCE = 1e-5;

static calibatt_heads heads_of(float* data, int tokens, int heads, int dim) {
  calibatt_heads view;
  view.data = data;
  view.batch_stride = (int64_t)tokens * heads * dim;
  view.token_stride = (int64_t)heads * dim;
  view.head_stride = dim;
  return view;
}

/* ---- a plan ----------------------------------------------------------------------------------------------------- */

static calibatt_run example_run(const double* sigmas, int num_steps) {
  calibatt_run run;
  memset(&run, 0, sizeof run);
  run.struct_size = sizeof run;
  run.device = CALIBATT_CPU;
  run.frames = 1, run.height = 4, run.width = 3;
  run.num_heads = 2, run.head_dim = 64, run.num_layers = 1;
  run.num_steps = num_steps;
  run.sigmas = sigmas;
  return run;
}

static calibatt_call call_of(inputs* in, float* out, int tokens, int heads, int dim) {
  calibatt_call call;
  memset(&call, 0, sizeof call);
  call.struct_size = sizeof call;
  call.batch = 1;
  call.num_tokens = tokens;
  call.dtype = CALIBATT_F32;
  call.q = heads_of(in->q, tokens, heads, dim);
  call.k = heads_of(in->k, tokens, heads, dim);
  call.v = heads_of(in->v, tokens, heads, dim);
  call.out = heads_of(out, tokens, heads, dim);
  return call;
}

/* The masks that docs/plan_format.md prints. */
static const char FIRST_STEP[] = {1, 1, 1, 1, 0, 1, 0, 1, 1};
static const char LATER_ANCHORED[] = {1, 1, 0, 0, 1, 1};
static const int ANCHORS[] = {3, 4, 5, 9, 10, 11};
static const int ANCHOR_OF[] = {0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4, 5};

static void plan_is_computed(const char* path) {
  enum { HEADS = 2, TOKENS = 12 };
  static inputs in;
  static float out[TOKENS * 128];
  const double sigmas[] = {0.99, 0.5, 0.2}; /* nearest: the plan's 1.0, then .75 or .25, which share an entry */
  const head_mask dense = {NULL, 4, 0, NULL, 0, NULL}, first = {FIRST_STEP, 4, 0, NULL, 0, NULL},
                  anchored = {LATER_ANCHORED, 4, 0, ANCHORS, 6, ANCHOR_OF};
  calibatt_run run = example_run(sigmas, 3);
  calibatt_plan* plan = NULL;
  calibatt_session* session = NULL;
  calibatt_call call;
  int32_t order[TOKENS];
  size_t workspace = 1;
  char* json = NULL;
  EXPECT(calibatt_plan_open("/no/such/plan.safetensors", &plan) == CALIBATT_NOT_FOUND);
  EXPECT(plan == NULL && strstr(calibatt_last_error(), "/no/such/plan.safetensors") != NULL);
  EXPECT_OK(calibatt_plan_open(path, &plan));
  EXPECT(strstr(calibatt_plan_json(plan), "\"heads\":2") != NULL);
  EXPECT(strstr(calibatt_plan_text(plan), "12") != NULL);

  run.num_layers = 2;
  EXPECT(calibatt_session_open(plan, &run, CALIBATT_REFUSE, &session) == CALIBATT_MISMATCH && session == NULL);
  run.num_layers = 1;
  EXPECT_OK(calibatt_session_open(plan, &run, CALIBATT_REFUSE, &session));
  calibatt_plan_close(plan); /* the session keeps what it needs */
  EXPECT_OK(calibatt_session_token_order(session, order));
  EXPECT(order[0] == 0 && order[11] == 11);

  fill_inputs(&in, TOKENS * 128, 1);
  call = call_of(&in, out, TOKENS, HEADS, 64);
  EXPECT(calibatt_session_attend(session, &call) == CALIBATT_USAGE); /* no forward has begun */
  EXPECT_OK(calibatt_session_prefetch(session, 0, 0));
  EXPECT_OK(calibatt_session_begin_forward(session, 0, CALIBATT_CONDITIONAL));
  EXPECT_OK(calibatt_session_workspace(session, &call, &workspace));
  EXPECT(workspace == 0);
  EXPECT_OK(calibatt_session_attend(session, &call));
  EXPECT(head_error(&in, out, &first, 0, HEADS, 64, TOKENS, TOKENS) < TOLERANCE);
  EXPECT(head_error(&in, out, &dense, 1, HEADS, 64, TOKENS, TOKENS) < TOLERANCE);
  EXPECT(head_error(&in, out, &dense, 0, HEADS, 64, TOKENS, TOKENS) > 1e-3);

  EXPECT_OK(calibatt_session_begin_forward(session, 2, CALIBATT_CONDITIONAL)); /* a step is left out */
  EXPECT_OK(calibatt_session_attend(session, &call));
  EXPECT(head_error(&in, out, &dense, 0, HEADS, 64, TOKENS, TOKENS) < TOLERANCE);
  EXPECT(head_error(&in, out, &anchored, 1, HEADS, 64, TOKENS, TOKENS) < TOLERANCE);

  EXPECT_OK(calibatt_session_json(session, &json));
  EXPECT(strstr(json, "\"calls\":2") != NULL && strstr(json, "\"weights\":\"not compared\"") != NULL);
  calibatt_string_free(json);
  calibatt_session_close(session);
}

static void samples_of_a_batch_are_alike(const char* path) {
  enum { TOKENS = 12, WIDTH = 128, SIZE = TOKENS * WIDTH };
  static float q[2 * SIZE], k[2 * SIZE], v[2 * SIZE], together[2 * SIZE], alone[SIZE];
  const double sigmas[] = {1.0};
  calibatt_run run = example_run(sigmas, 1);
  calibatt_plan* plan = NULL;
  calibatt_session* session = NULL;
  calibatt_call call;
  int sample;
  memset(&call, 0, sizeof call);
  call.struct_size = sizeof call;
  call.batch = 2, call.num_tokens = TOKENS, call.dtype = CALIBATT_F32;
  fill(q, 2 * SIZE, 11), fill(k, 2 * SIZE, 12), fill(v, 2 * SIZE, 13);
  call.q = heads_of(q, TOKENS, 2, 64), call.k = heads_of(k, TOKENS, 2, 64), call.v = heads_of(v, TOKENS, 2, 64);
  call.out = heads_of(together, TOKENS, 2, 64);
  EXPECT_OK(calibatt_plan_open(path, &plan));
  EXPECT_OK(calibatt_session_open(plan, &run, CALIBATT_REFUSE, &session));
  EXPECT_OK(calibatt_session_begin_forward(session, 0, CALIBATT_CONDITIONAL));
  EXPECT_OK(calibatt_session_attend(session, &call));
  for (sample = 0; sample < 2; ++sample) {
    call.batch = 1;
    call.q.data = q + sample * SIZE, call.k.data = k + sample * SIZE, call.v.data = v + sample * SIZE;
    call.out = heads_of(alone, TOKENS, 2, 64);
    EXPECT_OK(calibatt_session_attend(session, &call));
    EXPECT(memcmp(alone, together + sample * SIZE, sizeof alone) == 0);
  }
  calibatt_session_close(session);
  calibatt_plan_close(plan);
}

/* ---- masks of one's own ----------------------------------------------------------------------------------------- */

static void masks_are_computed(void) {
  enum { HEADS = 2, DIM = 16, TOKENS = 22, BLOCK = 8, BLOCKS = 3, ANCHORED = 10, ANCHORED_BLOCKS = 2 };
  static inputs in;
  static float out[TOKENS * HEADS * DIM], energy[HEADS * BLOCKS * BLOCKS];
  /* Of two heads; the last blocks hold 6 tokens. */
  const uint8_t kept[HEADS][BLOCKS * BLOCKS] = {{1, 0, 0, 1, 1, 0, 0, 0, 1}, {0, 1, 1, 1, 0, 1, 1, 0, 0}};
  const uint8_t kept_anchored[HEADS][ANCHORED_BLOCKS * BLOCKS] = {{1, 0, 1, 0, 1, 0}, {0, 0, 1, 1, 1, 0}};
  int32_t anchors[ANCHORED], anchor_of[TOKENS];
  int int_anchors[ANCHORED], int_anchor_of[TOKENS], head, anchored, summarize, r, c;
  calibatt_attention_call call;
  const char* kernel = NULL;
  size_t workspace = 1;
  memset(&call, 0, sizeof call);
  call.struct_size = sizeof call;
  call.device = CALIBATT_CPU;
  call.dtype = CALIBATT_F32;
  fill_inputs(&in, MOST_TOKENS * MOST_WIDTH, 5);
  call.q = heads_of(in.q, TOKENS, HEADS, DIM), call.k = heads_of(in.k, TOKENS, HEADS, DIM);
  call.v = heads_of(in.v, TOKENS, HEADS, DIM), call.out = heads_of(out, TOKENS, HEADS, DIM);
  call.batch = 1, call.num_heads = HEADS, call.head_dim = DIM, call.num_queries = call.num_keys = TOKENS;
  call.block_q = call.block_k = BLOCK;
  call.scale = 0.25f;
  for (r = 0; r < ANCHORED; ++r) anchors[r] = int_anchors[r] = 2 * r + 1;
  for (r = 0; r < TOKENS; ++r) anchor_of[r] = int_anchor_of[r] = (r / 2 < ANCHORED ? r / 2 : ANCHORED - 1);

  call.block_energy = energy;
  EXPECT_OK(calibatt_attention_kernel(&call, &kernel, &workspace));
  EXPECT(kernel != NULL && workspace == 0);
  EXPECT_OK(calibatt_attention(&call));
  for (head = 0; head < HEADS; ++head) {
    const head_mask dense = {NULL, BLOCK, 0, NULL, 0, NULL};
    EXPECT(head_error(&in, out, &dense, head, HEADS, DIM, TOKENS, TOKENS) < TOLERANCE);
    for (r = 0; r < BLOCKS; ++r) {
      double sum = 0;
      for (c = 0; c < BLOCKS; ++c) sum += energy[(head * BLOCKS + r) * BLOCKS + c];
      EXPECT(fabs(sum - 1) < TOLERANCE);
    }
  }
  call.block_energy = NULL;

  for (anchored = 0; anchored < 2; ++anchored) {
    for (summarize = 0; summarize < 2; ++summarize) {
      calibatt_masks masks;
      calibatt_schedule* schedule = NULL;
      memset(&masks, 0, sizeof masks);
      masks.struct_size = sizeof masks;
      masks.device = CALIBATT_CPU;
      masks.num_heads = HEADS, masks.num_queries = masks.num_keys = TOKENS, masks.block_q = masks.block_k = BLOCK;
      masks.kept = anchored ? kept_anchored[0] : kept[0];
      masks.summarize_skipped = summarize;
      if (anchored) masks.anchor_tokens = anchors, masks.num_anchors = ANCHORED, masks.anchor_of = anchor_of;
      EXPECT_OK(calibatt_schedule_make(&masks, &schedule));
      EXPECT(calibatt_schedule_bytes(schedule) > 0);
      call.schedule = schedule;
      EXPECT_OK(calibatt_attention(&call));
      for (head = 0; head < HEADS; ++head) {
        head_mask mask = {NULL, BLOCK, 0, NULL, 0, NULL};
        mask.kept = (const char*)(anchored ? kept_anchored[head] : kept[head]);
        mask.summarize = summarize;
        if (anchored) mask.anchors = int_anchors, mask.num_anchors = ANCHORED, mask.anchor_of = int_anchor_of;
        EXPECT(head_error(&in, out, &mask, head, HEADS, DIM, TOKENS, TOKENS) < TOLERANCE);
      }
      calibatt_schedule_free(schedule);
    }
  }
}

/* ---- calibration ------------------------------------------------------------------------------------------------ */

enum { FRAMES = 3, ROWS = 4, COLUMNS = 4, VIDEO = FRAMES * ROWS * COLUMNS, HEADS = 2, DIM = 16, LAYERS = 2, STEPS = 3 };
enum { WIDTH = HEADS * DIM };

typedef struct {
  int stop_in; /* prompt, or −1 */
  int prompts_run, gains_asked;
} denoiser;

static double gain_of(void* user) {
  ++((denoiser*)user)->gains_asked;
  return 0.5;
}

/* One self-attention of a "model": what a forward gives depends on prompt, step, branch and layer. */
static calibatt_status run_layer(calibatt_session* session, denoiser* state, int prompt, int step, int branch,
                                 int layer) {
  static inputs in;
  static float out[VIDEO * WIDTH], weight[WIDTH * WIDTH], gate[WIDTH];
  calibatt_output output;
  calibatt_call call;
  fill_inputs(&in, VIDEO * WIDTH, (unsigned)(1000 * prompt + 100 * step + 10 * branch + layer));
  fill(weight, WIDTH * WIDTH, 77);
  fill(gate, WIDTH, 78);
  memset(&output, 0, sizeof output);
  output.struct_size = sizeof output;
  output.weight = weight;
  output.weight_dtype = CALIBATT_F32;
  output.out_features = WIDTH;
  output.gate = layer == 0 ? gate : NULL;
  output.residual_square_sum = 1e4;
  output.squared_gain = layer == 1 ? gain_of : NULL;
  output.user = state;
  call = call_of(&in, out, VIDEO, HEADS, DIM);
  call.layer = layer;
  call.output = calibatt_session_wants_output(session) ? &output : NULL;
  return calibatt_session_attend(session, &call);
}

static int32_t denoise(void* user, int32_t prompt, calibatt_session* session, double* seconds) {
  denoiser* state = user;
  int step, branch, layer;
  for (step = 0; step < STEPS; ++step) {
    if (prompt == state->stop_in && step == 1) return 1;
    for (branch = 0; branch < 2; ++branch) {
      if (calibatt_session_begin_forward(session, step, (calibatt_branch)branch) != CALIBATT_OK) return 1;
      for (layer = 0; layer < LAYERS; ++layer) {
        if (run_layer(session, state, prompt, step, branch, layer) != CALIBATT_OK) return 1;
      }
    }
  }
  ++state->prompts_run;
  *seconds = 0;
  return 0;
}

static int32_t count_progress(void* user, const char* stage, int64_t done, int64_t total) {
  EXPECT(strcmp(stage, "compile") == 0 && done >= 0 && done <= total);
  ++*(int*)user;
  return 0;
}
static int32_t stop_at_once(void* user, const char* stage, int64_t done, int64_t total) {
  (void)user, (void)stage, (void)done, (void)total;
  return 1;
}

static void calibration_resumes(const char* folder, const char* measure) {
  const double sigmas[] = {1.0, 0.7, 0.3};
  const calibatt_prompt prompts[] = {{"a red circle", "blue", 5}, {"a blue square", "blue", 6}, {"a star", "blue", 7}};
  calibatt_setting settings[] = {
      {"measure", NULL}, {"block-q", "8"}, {"block-k", "8"}, {"token-order", "tiles:1x2x2"}, {"density", "0.6"}};
  const calibatt_setting unread[] = {{"density", "0.6"}, {"rho", "0.7"}};
  char profile[1024], path[1024];
  denoiser state = {1, 0, 0};
  calibatt_run run = example_run(sigmas, STEPS);
  calibatt_calibration calibration;
  calibatt_plan* plan = NULL;
  calibatt_session* session = NULL;
  char* json = NULL;
  FILE* absent;
  int layer, heard = 0;
  settings[0].value = measure;
  snprintf(profile, sizeof profile, "%s/%s.profile", folder, measure);
  snprintf(path, sizeof path, "%s/%s.safetensors", folder, measure);
  run.frames = FRAMES, run.height = ROWS, run.width = COLUMNS, run.num_layers = LAYERS, run.head_dim = DIM;
  run.guidance_scale = 5;
  memset(&calibration, 0, sizeof calibration);
  calibration.struct_size = sizeof calibration;
  calibration.run = &run;
  calibration.prompts = prompts;
  calibration.num_prompts = 3;
  calibration.precision = "f32";
  calibration.settings = settings;
  calibration.num_settings = sizeof settings / sizeof *settings;

  EXPECT(calibatt_record(profile, &calibration, denoise, &state, &json) == CALIBATT_CANCELLED);
  EXPECT(json == NULL && state.prompts_run == 1);
  EXPECT(calibatt_compile(profile, path, settings, 5, NULL, NULL, NULL) == CALIBATT_USAGE); /* 1 of 3 prompts */
  state.stop_in = -1;
  EXPECT_OK(calibatt_record(profile, &calibration, denoise, &state, &json));
  EXPECT(state.prompts_run == 3 && state.gains_asked > 0);
  EXPECT(strstr(json, "\"prompts_recorded\":2") != NULL && strstr(json, "\"prompts_resumed\":1") != NULL);
  EXPECT(strstr(json, measure) != NULL);
  calibatt_string_free(json);

  EXPECT(calibatt_compile(profile, path, settings, 5, stop_at_once, NULL, NULL) == CALIBATT_CANCELLED);
  absent = fopen(path, "rb");
  EXPECT(absent == NULL);
  if (absent != NULL) fclose(absent);
  json = NULL;
  EXPECT_OK(calibatt_compile(profile, path, settings, 5, count_progress, &heard, &json));
  EXPECT(heard > 0 && strstr(json, "\"held_out\":true") != NULL && strstr(json, "\"warnings\":[]") != NULL);
  calibatt_string_free(json);
  EXPECT_OK(calibatt_compile(profile, path, unread, 2, NULL, NULL, &json));
  EXPECT(strstr(json, "\"warnings\":[\"settings.rho changes nothing here: only settings.agreement vote") != NULL);
  calibatt_string_free(json);

  calibration.num_prompts = 2; /* of the three */
  EXPECT_OK(calibatt_compile_prompts(profile, path, &calibration, NULL, NULL, NULL));
  EXPECT_OK(calibatt_plan_open(path, &plan));
  EXPECT(strstr(calibatt_plan_json(plan), "\"num_prompts\":2") != NULL);
  EXPECT(strstr(calibatt_plan_json(plan), "\"token_order\":\"tiles:1x2x2\"") != NULL);
  run.guidance_scale = CALIBATT_UNGUIDED;
  EXPECT_OK(calibatt_session_open(plan, &run, CALIBATT_REFUSE, &session));
  json = NULL;
  EXPECT_OK(calibatt_session_json(session, &json));
  EXPECT(strstr(json, "calibrated with guidance 5") != NULL);
  calibatt_string_free(json);
  EXPECT_OK(calibatt_session_begin_forward(session, 1, CALIBATT_CONDITIONAL));
  EXPECT(calibatt_session_wants_output(session) == 0);
  for (layer = 0; layer < LAYERS; ++layer) EXPECT_OK(run_layer(session, &state, 9, 1, 0, layer));
  calibatt_session_close(session);
  calibatt_plan_close(plan);
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: c_api_test PLAN FOLDER\n");
    return 2;
  }
  EXPECT(calibatt_abi_version() == CALIBATT_ABI_VERSION);
  EXPECT(strlen(calibatt_version()) > 0);
  if (calibatt_cuda_available() != CALIBATT_OK) EXPECT(strlen(calibatt_last_error()) > 0);
  plan_is_computed(argv[1]);
  samples_of_a_batch_are_alike(argv[1]);
  masks_are_computed();
  calibration_resumes(argv[2], "maps");
  calibration_resumes(argv[2], "levels");
  if (failures > 0) fprintf(stderr, "%d failures\n", failures);
  return failures > 0 ? 1 : 0;
}
