// SPDX-License-Identifier: Apache-2.0
/* Every function of mneme.h, from a strict C11 program that links libmneme alone. The attention numbers are those of
 * Memorizing Transformers' gate worked by hand: scale 2, gate 0.5, query (1, 0); memory keys at 0, 60, 90 and 180
 * degrees, top-2; local keys at 0 and 90 degrees. */
#include <math.h>
#include <mneme.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                                        \
  do {                                                                                          \
    if (!(condition)) {                                                                         \
      fprintf(stderr, "%s:%d: %s\n  %s\n", __FILE__, __LINE__, #condition, mneme_last_error()); \
      ++failures;                                                                               \
    }                                                                                           \
  } while (0)
#define CHECK_OK(call) CHECK((call) == MNEME_OK)
#define CHECK_NEAR(actual, expected)                                                                     \
  do {                                                                                                   \
    const double actual_ = (actual), expected_ = (expected);                                             \
    if (!(fabs(actual_ - expected_) <= 2e-6)) {                                                          \
      fprintf(stderr, "%s:%d: %s is %.7f, not %.7f\n", __FILE__, __LINE__, #actual, actual_, expected_); \
      ++failures;                                                                                        \
    }                                                                                                    \
  } while (0)

/* A key and a value of two f32 each, a position and a token id. */
enum { kTokenBytes = 16 + 8 + 4 };

static const float kKeys[4][2] = {{1, 0}, {0.5f, 0.8660254f}, {0, 1}, {-1, 0}};
static const float kValues[4][2] = {{1, 0}, {0, 1}, {2, 2}, {5, 5}};
static const int64_t kRows[] = {4, 1, 2}, kTwoRows[] = {2, 1, 2}, kOneRow[] = {1, 1, 2};

static mneme_tensor Tensor(const void* data, const int64_t* shape) {
  mneme_tensor tensor = {NULL, MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, NULL, NULL};
  tensor.data = (void*)(uintptr_t)data;
  tensor.shape = shape;
  return tensor;
}

static mneme_card* MakeCard(const char* name) {
  mneme_card* card = NULL;
  mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
  layer.layer = 9;
  layer.q_heads = layer.kv_heads = 1;
  layer.key_dim = layer.value_dim = 2;
  layer.scale = 2;
  CHECK_OK(mneme_card_create(name, "sha256:0", &card));
  CHECK_OK(mneme_card_add_layer(card, &layer));
  return card;
}

static mneme_memory_info Info(mneme_memory* memory) {
  mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
  CHECK_OK(mneme_memory_get_info(memory, &info));
  return info;
}

static int CountCalls(void* context, int64_t done, int64_t total) {
  (void)total;
  ++*(int*)context;
  return done < 0;
}

struct listing {
  int memories;
  int64_t tokens, bytes;
  char names[64];
};

static int Visit(void* context, const char* name, int64_t tokens, int64_t bytes) {
  struct listing* listing = context;
  ++listing->memories;
  listing->tokens += tokens;
  listing->bytes += bytes;
  strcat(strcat(listing->names, name), ";");
  return 0;
}

static void CheckLibrary(void) {
  CHECK(mneme_abi_version() == MNEME_ABI_VERSION);
  CHECK(strstr(mneme_version(), "faiss") != NULL && strstr(mneme_version(), "rocksdb") != NULL);
  CHECK(strcmp(mneme_last_error(), "") == 0);
  CHECK(strcmp(mneme_status_name(MNEME_STATUS_DATA_LOSS), "DATA_LOSS") == 0);
  CHECK(mneme_status_classify(MNEME_STATUS_DATA_LOSS) == MNEME_CLASS_DATA);
}

static void Append(mneme_memory* memory) {
  const mneme_tensor keys = Tensor(kKeys, kRows), values = Tensor(kValues, kRows);
  const int32_t ids[] = {11, 12, 13, 14};
  mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
  args.layer = 9;
  args.keys = &keys;
  args.values = &values;
  args.token_ids = ids;
  CHECK_OK(mneme_memory_append(memory, &args));
}

/* The gradient of the worked example's first output by the gate: s (1 - s) (memory - local). */
static void CheckBackward(mneme_memory* memory, const mneme_attend_args* attend) {
  const float output_gradient[] = {1, 0};
  const mneme_tensor output_gradient_tensor = Tensor(output_gradient, kOneRow);
  float gate_gradient = 0;
  mneme_attend_backward_args args = MNEME_ATTEND_BACKWARD_ARGS_INIT;
  args.attend = attend;
  args.output_gradient = &output_gradient_tensor;
  args.gate_gradient = &gate_gradient;
  CHECK_OK(mneme_attend_backward(&memory, 1, &args));
  CHECK_NEAR(gate_gradient, 0.059749);
}

/* What the worked example gives for each fusion. */
static void CheckAttend(mneme_memory* memory) {
  const float query[] = {1, 0}, local_keys[2][2] = {{1, 0}, {0, 1}}, local_values[2][2] = {{0, 0}, {4, 0}};
  const mneme_tensor query_tensor = Tensor(query, kOneRow);
  const mneme_tensor local_keys_tensor = Tensor(local_keys, kTwoRows),
                     local_values_tensor = Tensor(local_values, kTwoRows);
  float output[2], lse, mass, scores[3];
  int64_t found[3];
  const mneme_tensor output_tensor = Tensor(output, kOneRow);
  const float gate = 0.5f;
  mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
  args.layer = 9;
  args.query = &query_tensor;
  args.local_keys = &local_keys_tensor;
  args.local_values = &local_values_tensor;
  args.gate = &gate;
  args.default_top_k = 2;
  args.output = &output_tensor;
  args.log_sum_exp = &lse;
  args.memory_mass = &mass;
  args.retrieved_tokens = found;
  args.retrieved_scores = scores;
  args.retrieved_stride = 3;

  args.fusion = MNEME_FUSION_GATED;
  CHECK_OK(mneme_attend(&memory, 1, &args));
  CHECK_NEAR(output[0], 0.635070);
  CHECK_NEAR(output[1], 0.167405);
  CHECK_NEAR(lse, 2.917577);
  CHECK_NEAR(mass, 0.622459);
  CHECK(found[0] == 0 && found[1] == 1 && found[2] == -1);
  CHECK_NEAR(scores[0], 2);
  CHECK_NEAR(scores[1], 1);
  CHECK(isinf(scores[2]) && scores[2] < 0);
  CheckBackward(memory, &args);

  args.fusion = MNEME_FUSION_JOINT;
  CHECK_OK(mneme_attend(&memory, 1, &args));
  CHECK_NEAR(output[0], 0.615745);
  CHECK_NEAR(output[1], 0.146963);
  CHECK_NEAR(lse, 2.917577);
  CHECK_NEAR(mass, 0.546449);

  args.fusion = MNEME_FUSION_MEMORY_ONLY;
  CHECK_OK(mneme_attend(&memory, 1, &args));
  CHECK_NEAR(output[0], 0.731059);
  CHECK_NEAR(output[1], 0.268941);
  CHECK_NEAR(mass, 1);

  args.fusion = MNEME_FUSION_LOCAL_ONLY;
  CHECK_OK(mneme_attend(&memory, 1, &args));
  CHECK_NEAR(output[0], 0.476812);
  CHECK_NEAR(output[1], 0);
  CHECK_NEAR(mass, 0);
}

/* The two halves of the example, merged by a host that has a kernel of its own. */
static void CheckMerge(void) {
  const float memory[] = {0.731059f, 0.268941f}, local[] = {0.476812f, 0};
  const float memory_lse = 2.313262f, local_lse = 2.126928f, gate = 0.5f;
  const mneme_tensor a = Tensor(memory, kOneRow), b = Tensor(local, kOneRow);
  float output[2], lse = 0;
  const mneme_tensor out = Tensor(output, kOneRow);
  mneme_merge_args args = MNEME_MERGE_ARGS_INIT;
  args.a_output = &a;
  args.a_log_sum_exp = &memory_lse;
  args.b_output = &b;
  args.b_log_sum_exp = &local_lse;
  args.output = &out;
  args.log_sum_exp = &lse;
  CHECK_OK(mneme_merge(&args));
  CHECK_NEAR(output[0], 0.615745);
  CHECK_NEAR(output[1], 0.146963);
  CHECK_NEAR(lse, 2.917577);
  args.gate = &gate;
  CHECK_OK(mneme_merge(&args));
  CHECK_NEAR(output[0], 0.635070);
  CHECK_NEAR(output[1], 0.167405);
}

static void CheckSearchAndRead(mneme_memory* memory) {
  const float query[] = {0, 1};
  const mneme_tensor query_tensor = Tensor(query, kOneRow);
  float scores[5], values[5][2], keys[2][2];
  int64_t tokens[5], positions[2];
  int32_t ids[2];
  const int64_t values_shape[] = {1, 1, 5, 2};
  mneme_tensor values_tensor = Tensor(values, values_shape);
  const mneme_tensor keys_tensor = Tensor(keys, kTwoRows);
  mneme_search_args search = MNEME_SEARCH_ARGS_INIT;
  mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
  values_tensor.ndim = 4;
  search.layer = 9;
  search.query = &query_tensor;
  search.top_k = 5;
  search.tokens = tokens;
  search.scores = scores;
  search.values = &values_tensor;
  CHECK_OK(mneme_search(&memory, 1, &search));
  CHECK(tokens[0] == 2 && tokens[1] == 1 && tokens[2] == 0 && tokens[4] == -1);
  CHECK_NEAR(scores[0], 2);
  CHECK_NEAR(scores[1], 1.7320508);
  CHECK(values[0][0] == 2 && values[0][1] == 2 && values[1][1] == 1 && values[4][0] == 0);

  read.layer = 9;
  read.begin = 1;
  read.tokens = 2;
  read.keys = &keys_tensor;
  read.positions = positions;
  read.token_ids = ids;
  CHECK_OK(mneme_memory_read(memory, &read));
  CHECK(memcmp(keys, kKeys[1], sizeof(keys)) == 0);
  CHECK(positions[0] == 1 && positions[1] == 2 && ids[0] == 12 && ids[1] == 13);
}

/* Snapshots, forks, evictions and truncations of a memory that holds the example's four tokens. */
static void CheckShapes(mneme_store* store, mneme_memory* memory) {
  mneme_snapshot* snapshot = NULL;
  mneme_memory* fork = NULL;
  const mneme_snapshot* snapshots[1];
  const float query[] = {-1, 0};
  const mneme_tensor query_tensor = Tensor(query, kOneRow);
  int64_t token = 0;
  int calls = 0;
  mneme_search_args search = MNEME_SEARCH_ARGS_INIT;
  search.layer = 9;
  search.query = &query_tensor;
  search.top_k = 1;
  search.tokens = &token;

  CHECK_OK(mneme_snapshot_create(memory, &snapshot));
  CHECK_OK(mneme_memory_fork(memory, 3, "fork", &fork));
  CHECK(Info(fork).next_token == 3);
  CHECK_OK(mneme_memory_evict(memory, 3));
  CHECK(Info(memory).tokens == 3 && Info(memory).first_kept == 1 && Info(memory).next_token == 4);
  CHECK_OK(mneme_memory_truncate(memory, 2));
  CHECK(Info(memory).next_token == 2 && Info(memory).tokens == 1);
  CHECK_OK(mneme_memory_maintain(memory, CountCalls, &calls));
  /* The snapshot still sees token 3, which points where the query points; the memory has it no more. */
  snapshots[0] = snapshot;
  search.snapshots = snapshots;
  CHECK_OK(mneme_search(&memory, 1, &search));
  CHECK(token == 3);
  search.snapshots = NULL;
  CHECK_OK(mneme_search(&memory, 1, &search));
  CHECK(token == 1);
  CHECK(mneme_store_close(store) == MNEME_STATUS_FAILED_PRECONDITION);
  mneme_snapshot_release(snapshot);
  CHECK_OK(mneme_memory_close(fork));
}

static int CountBackups(void* context, const mneme_backup_info* info) {
  *(int*)context += info->damaged == 0;
  return 0;
}

/* Backs up into PATH.backups, and restores to PATH.restored. */
static void CheckBackup(mneme_store* store, const char* path) {
  char folder[4096], restored[4096];
  mneme_store_backup_args backup = MNEME_STORE_BACKUP_ARGS_INIT;
  mneme_store_restore_args restore = MNEME_STORE_RESTORE_ARGS_INIT;
  mneme_backup_info info = MNEME_BACKUP_INFO_INIT;
  int backups = 0;
  CHECK(snprintf(folder, sizeof(folder), "%s.backups", path) < (int)sizeof(folder));
  CHECK(snprintf(restored, sizeof(restored), "%s.restored", path) < (int)sizeof(restored));
  backup.folder = restore.folder = folder;
  restore.path = restored;
  CHECK_OK(mneme_store_backup(store, &backup, &info));
  CHECK(info.id == 1 && info.bytes > 0 && info.copied_bytes > 0);
  CHECK_OK(mneme_backup_list(folder, CountBackups, &backups));
  CHECK(backups == 1);
  CHECK_OK(mneme_backup_verify(folder, info.id, NULL, NULL));
  CHECK_OK(mneme_store_restore(&restore));
  CHECK(mneme_store_restore(&restore) == MNEME_STATUS_ALREADY_EXISTS);
}

int main(int argc, char** argv) {
  mneme_store* store = NULL;
  mneme_card *card, *foreign;
  mneme_memory* memory = NULL;
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  mneme_store_options store_options = MNEME_STORE_OPTIONS_INIT;
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  struct listing listing = {0, 0, 0, ""};
  int64_t durable = -1;
  int calls = 0;
  if (argc != 2) return 2;
  CheckLibrary();

  CHECK_OK(mneme_store_open(argv[1], NULL, &store));
  card = MakeCard("model");
  options.stored_dtype = MNEME_DTYPE_F32;
  CHECK_OK(mneme_memory_create(store, "worked", card, &options, &memory));
  Append(memory);
  CHECK_OK(mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, &durable));
  CHECK(durable == 4);
  CHECK(Info(memory).bytes == 4 * kTokenBytes && Info(memory).layers == 1);
  CheckAttend(memory);
  CheckMerge();
  CheckSearchAndRead(memory);
  CheckShapes(store, memory);
  CHECK_OK(mneme_memory_close(memory));
  CHECK_OK(mneme_store_list(store, Visit, &listing));
  CHECK(listing.memories == 2 && listing.tokens == 4 && listing.bytes == 4 * kTokenBytes);
  CHECK(strcmp(listing.names, "fork;worked;") == 0);
  CHECK_OK(mneme_store_verify(store, CountCalls, &calls, &report));
  CHECK(report.memories == 2 && report.damaged_memories == 0 && report.damaged_values == 0 && calls > 0);
  CHECK_OK(mneme_store_get_stats(store, &stats));
  CHECK(stats.memories == 2 && stats.open_memories == 0 && stats.appended_bytes > 0 && stats.disk_bytes > 0);
  CHECK_OK(mneme_store_close(store));

  /* Again, from the disk. */
  store_options.must_exist = 1;
  CHECK_OK(mneme_store_open(argv[1], &store_options, &store));
  foreign = MakeCard("another model");
  CHECK(mneme_memory_open(store, "worked", foreign, &memory) == MNEME_STATUS_FAILED_PRECONDITION);
  CHECK(strstr(mneme_last_error(), "model_name") != NULL);
  CHECK_OK(mneme_memory_open(store, "worked", card, &memory));
  CHECK(Info(memory).next_token == 2 && Info(memory).tokens == 1 && Info(memory).tokens_durable == 2);
  CHECK_OK(mneme_memory_truncate(memory, 0));
  Append(memory);
  CheckAttend(memory);
  CHECK_OK(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, NULL));
  CHECK_OK(mneme_memory_close(memory));
  CHECK_OK(mneme_memory_drop(store, "worked"));
  CHECK_OK(mneme_store_compact(store));
  CHECK(mneme_memory_open(store, "worked", NULL, &memory) == MNEME_STATUS_NOT_FOUND);
  CheckBackup(store, argv[1]);
  CHECK_OK(mneme_memory_open(store, "fork", card, &memory));
  CheckSearchAndRead(memory);
  CHECK_OK(mneme_memory_close(memory));
  mneme_card_release(foreign);
  mneme_card_release(card);
  CHECK_OK(mneme_store_close(store));
  if (failures == 0) puts("every function works from C11");
  return failures == 0 ? 0 : 1;
}
