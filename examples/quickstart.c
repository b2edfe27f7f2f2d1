// SPDX-License-Identifier: Apache-2.0
/* A memory of one layer that survives the process. The first run appends 1,000 tokens; every later run finds one of
 * them.
 *
 *   quickstart STORE [MODEL]     STORE: a folder; MODEL: the model's name, "my-model" unless said otherwise */
#include <mneme.h>
#include <stdio.h>
#include <stdlib.h>

enum { kTokens = 1000, kHeads = 2, kDim = 64 };

/* Ends the program if a call failed. Exit without close is safe: the store keeps what was committed. */
static void Check(mneme_status status, const char* action) {
  if (status == MNEME_OK) return;
  fprintf(stderr, "quickstart: cannot %s: %s: %s\n", action, mneme_status_name(status), mneme_last_error());
  exit(1);
}

/* README: begin */
/* Makes new tokens of a layer part of the memory. They are durable when this returns. */
static void Append(mneme_memory* memory, const mneme_tensor* keys, const mneme_tensor* values) {
  mneme_memory_append_args append = MNEME_MEMORY_APPEND_ARGS_INIT;
  append.keys = keys, append.values = values; /* [tokens, kv_heads, dim] */
  Check(mneme_memory_append(memory, &append), "append tokens");
  Check(mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, NULL), "commit");
}

/* Attends to the memory. `retrieved` gets the best token of each head. */
static void Attend(mneme_memory* memory, const mneme_tensor* query, const mneme_tensor* output, int64_t* retrieved) {
  mneme_attend_args attend = MNEME_ATTEND_ARGS_INIT;
  attend.query = query, attend.output = output; /* [tokens, q_heads, dim] */
  attend.retrieved_tokens = retrieved, attend.retrieved_stride = 1;
  Check(mneme_attend(&memory, 1, &attend), "attend");
}
/* README: end */

/* Appends 1,000 tokens. A host passes the keys and values that its model computed; here they are random. */
static void Remember(mneme_memory* memory) {
  static float rows[kTokens * kHeads * kDim];
  for (int i = 0; i < kTokens * kHeads * kDim; ++i) rows[i] = (float)rand() / (float)RAND_MAX - 0.5f;
  const int64_t shape[] = {kTokens, kHeads, kDim};
  const mneme_tensor tensor = mneme_tensor_contiguous(rows, MNEME_DTYPE_F32, 3, shape);
  Append(memory, &tensor, &tensor);
  printf("remembered %d tokens; run me again\n", kTokens);
}

/* Attends with the key of token 123 as the query, made sharper: each head retrieves that token. */
static void Recall(mneme_memory* memory) {
  float query[kHeads * kDim], output[kHeads * kDim];
  const int64_t shape[] = {1, kHeads, kDim};
  const mneme_tensor query_tensor = mneme_tensor_contiguous(query, MNEME_DTYPE_F32, 3, shape);
  const mneme_tensor output_tensor = mneme_tensor_contiguous(output, MNEME_DTYPE_F32, 3, shape);
  mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
  read.begin = 123, read.tokens = 1, read.keys = &query_tensor;
  Check(mneme_memory_read(memory, &read), "read token 123");
  for (int i = 0; i < kHeads * kDim; ++i) query[i] *= 100;
  int64_t retrieved[kHeads];
  Attend(memory, &query_tensor, &output_tensor, retrieved);
  printf("token %lld answers head 0, token %lld head 1\n", (long long)retrieved[0], (long long)retrieved[1]);
}

/* The card describes the model: a memory refuses a host whose card differs. */
static mneme_card* MakeCard(const char* model) {
  mneme_card* card = NULL;
  mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
  layer.q_heads = layer.kv_heads = kHeads, layer.key_dim = layer.value_dim = kDim, layer.scale = 0.125f;
  Check(mneme_card_create(model, "sha256:...", &card), "create the card");
  Check(mneme_card_add_layer(card, &layer), "add a layer to the card");
  return card;
}

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) {
    fprintf(stderr, "usage: quickstart STORE [MODEL]\n");
    return 2;
  }
  mneme_store* store = NULL;
  Check(mneme_store_open(argv[1], NULL, &store), "open the store");
  mneme_card* card = MakeCard(argc == 3 ? argv[2] : "my-model");
  mneme_memory* memory = NULL;
  mneme_status status = mneme_memory_open(store, "user-42", card, &memory);
  if (status == MNEME_STATUS_NOT_FOUND) status = mneme_memory_create(store, "user-42", card, NULL, &memory);
  Check(status, "open the memory");
  mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
  Check(mneme_memory_get_info(memory, &info), "ask for the memory's size");
  if (info.tokens == 0) {
    Remember(memory);
  } else {
    Recall(memory);
  }
  Check(mneme_memory_close(memory), "close the memory");
  mneme_card_release(card);
  Check(mneme_store_close(store), "close the store");
  return 0;
}
