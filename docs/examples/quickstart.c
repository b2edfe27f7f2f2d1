/* A memory of one layer: remember 1,000 tokens, find one of them again, survive the process. */
#include <mneme.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call) \
  if ((call) != MNEME_OK) { fprintf(stderr, "%s: %s\n", #call, mneme_last_error()); exit(1); }

enum { kTokens = 1000, kHeads = 2, kDim = 64 };

int main(int argc, char** argv) {
  mneme_store* store;
  CHECK(mneme_store_open(argc > 1 ? argv[1] : "/tmp/mneme-quickstart", NULL, &store));

  mneme_card* card; /* what the memory is made by: your model, its attention layers */
  mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
  layer.q_heads = layer.kv_heads = kHeads, layer.key_dim = layer.value_dim = kDim, layer.scale = 0.125f;
  CHECK(mneme_card_create("my-model", "sha256:...", &card));
  CHECK(mneme_card_add_layer(card, &layer));

  mneme_memory* memory;
  if (mneme_memory_open(store, "user-42", card, &memory) == MNEME_NOT_FOUND) {
    static float rows[kTokens * kHeads * kDim]; /* the keys your model computed; values likewise */
    for (int i = 0; i < kTokens * kHeads * kDim; ++i) rows[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    const int64_t shape[] = {kTokens, kHeads, kDim};
    const mneme_tensor tensor = {rows, MNEME_F32, MNEME_DEVICE_CPU, 0, 3, shape, NULL};
    mneme_append_args append = MNEME_APPEND_ARGS_INIT;
    append.keys = append.values = &tensor;
    CHECK(mneme_memory_create(store, "user-42", card, NULL, &memory));
    CHECK(mneme_append(memory, &append));
    CHECK(mneme_commit(memory, MNEME_SYNCED, NULL)); /* from here on it survives anything */
    puts("remembered 1000 tokens; run me again");
  } else {
    float query[kHeads * kDim], output[kHeads * kDim];
    const int64_t shape[] = {1, kHeads, kDim};
    const mneme_tensor query_tensor = {query, MNEME_F32, MNEME_DEVICE_CPU, 0, 3, shape, NULL};
    const mneme_tensor output_tensor = {output, MNEME_F32, MNEME_DEVICE_CPU, 0, 3, shape, NULL};
    mneme_read_args read = MNEME_READ_ARGS_INIT; /* ask with the key of token 123 … */
    read.begin = 123, read.tokens = 1, read.keys = &query_tensor;
    CHECK(mneme_read(memory, &read));
    for (int i = 0; i < kHeads * kDim; ++i) query[i] *= 100; /* … sharply */
    int64_t found[kHeads];
    mneme_attend_args attend = MNEME_ATTEND_ARGS_INIT;
    attend.query = &query_tensor, attend.output = &output_tensor;
    attend.retrieved_tokens = found, attend.retrieved_stride = 1;
    CHECK(mneme_attend(&memory, 1, &attend));
    printf("token %lld answers head 0, token %lld head 1\n", (long long)found[0], (long long)found[1]);
  }
  CHECK(mneme_memory_close(memory));
  mneme_card_release(card);
  CHECK(mneme_store_close(store));
  return 0;
}
