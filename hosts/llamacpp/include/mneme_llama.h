/* SPDX-License-Identifier: Apache-2.0 */
/** @file mneme_llama.h
 *
 * mneme for llama.cpp: gives the attention layers of a llama.cpp model a memory that outlives its context window.
 *
 * The adapter listens to the graph through llama_context_params.cb_eval. At each chosen layer it takes the keys and
 * values of the new tokens, and replaces the attention output (node kqv_out, before the output projection) by attention
 * over the local window and the rows retrieved from the sequence's memory. Weights, cache and graph stay llama.cpp's.
 *
 * @code
 * mneme_llama_threads_create(n_threads, NULL, &threads);  // one set for model and engine; or the store's own threads
 * mneme_llama_threads_fill_store_options(threads, &store_options);  // before mneme_store_open
 * mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
 * options.model_path = path;
 * mneme_llama_create(model, &options, &adapter);
 * mneme_llama_prepare(adapter, &context_params);  // sets cb_eval, or says why this context cannot be served
 * ctx = llama_init_from_model(model, context_params);
 * mneme_llama_bind(adapter, ctx);
 * mneme_llama_set_threads(adapter, threads);
 * mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
 * mneme_llama_fill_memory_options(adapter, 8192, &rows);  // 8,192 tokens beyond the window, the first 16 pinned
 * mneme_memory_create(store, "user-42", mneme_llama_get_card(adapter), &rows, &memory);
 * mneme_llama_set_memory(adapter, 0, memory, MNEME_LLAMA_MODE_APPEND);
 * mneme_llama_decode(adapter, batch);  // instead of llama_decode
 * mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, NULL);
 * @endcode
 *
 * **The local window.** A new token attends to the tokens of its sequence that llama.cpp's cache holds, and to the
 * memory for all that came before these. When the cache would hold more than twice `window` tokens of a sequence,
 * decode first drops its oldest down to `window`. Rows are appended as they are computed and become visible as they
 * leave the cache, so that each counts exactly once.
 *
 * **Served:** CPU tensors, unified caches, and every architecture of whose graph the adapter finds the unrotated
 * queries and keys, the values and the attention. Sliding-window layers have no memory. Everything else is refused with
 * the layer and the reason.
 *
 * The conventions are those of mneme.h: a status from each call, mneme_llama_last_error() for its message, structs that
 * are right after `{sizeof(T)}`, `_release` that never fails and takes NULL. The calls of one adapter come from one
 * thread at a time.
 */
#ifndef MNEME_LLAMA_H_
#define MNEME_LLAMA_H_

#include "llama.h"
#include "mneme.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mneme_llama mneme_llama; /**< an adapter: a model, its settings and the memories of its sequences */

/** The message of this thread's last failed call of this header; "" if none failed yet. Valid until the next one. */
MNEME_API const char* mneme_llama_last_error(void);

/** Rules of one layer that differ from those of mneme_llama_options. Each array has an entry for every query head, or
 * one for all; NULL: as the options say. */
typedef struct mneme_llama_layer_rules {
  int32_t layer;            /**< one of those that have a memory */
  int32_t n_heads;          /**< length of the arrays: the layer's query heads, or 1 */
  const int64_t* top_k;     /**< 0: the head retrieves nothing */
  const float* distance;    /**< tokens */
  const float* memory_bias; /**< added to retrieved logits (joint fusion) */
  const float* decay;       /**< nats for each doubling of age, 0 or more */
} mneme_llama_layer_rules;

/** How an adapter attends. Zero is the default of every field. */
typedef struct mneme_llama_options {
  size_t struct_size;
  const char* model_path;          /**< the GGUF file of the model, for its weights' fingerprint. Of split files give
                                        weights_fingerprint instead */
  const char* weights_fingerprint; /**< the host's own words for the weights; NULL: computed from model_path */
  const int32_t* layers;           /**< [n_layers] ascending; NULL: every layer with global attention */
  size_t n_layers;
  int32_t position_policy;  /**< mneme_position_policy; MNEME_POSITION_DEFAULT: MNEME_POSITION_FIXED_DISTANCE.
                                 MNEME_POSITION_AS_STORED keeps rotated keys at true positions, the others unrotated
                                 keys */
  float distance;           /**< tokens, of FIXED_DISTANCE and CLAMPED; 0: 2048 */
  int64_t top_k;            /**< rows retrieved for a query head and token; 0: 32 */
  int32_t fusion;           /**< mneme_fusion */
  float memory_bias;        /**< added to retrieved logits (joint fusion) */
  float decay;              /**< nats for each doubling of age beyond decay_beyond, 0 or more */
  float decay_beyond;       /**< tokens, 1 or more; 0: 1 */
  float gate;               /**< before the sigmoid (gated fusion) */
  int64_t pinned_tokens;    /**< attention sinks: the first tokens of a memory, never evicted; 0: 16; -1: none */
  int32_t window;           /**< tokens of a sequence that stay in llama.cpp's cache, which holds at most twice as many;
                                 0: 512 */
  int64_t restart_beyond;   /**< positions in the cache start at 0 again when they reach this, as float angles grow
                                 coarse, but never under AS_STORED; 0: 65536 */
  int32_t always_overwrite; /**< 1: the output is replaced also when no row of the memory is visible */
  const mneme_llama_layer_rules* rules; /**< [n_rules] of single layers, copied */
  size_t n_rules;
} mneme_llama_options;
#define MNEME_LLAMA_OPTIONS_INIT MNEME_STRUCT_INIT(mneme_llama_options)

/** Has llama.cpp build the model's graph in a small context of its own, computes nothing of it, and reads from it how
 * each layer attends.
 * @param model    stays the caller's and must outlive the adapter
 * @param options  with model_path or weights_fingerprint
 * @param adapter  out; given back by mneme_llama_release
 * @return MNEME_STATUS_UNIMPLEMENTED, with layer and reason: a recurrent layer, multi-head latent attention, attention
 * sinks as weights, scores that are biased by distance, learned positions, positions of several parts, keys that
 * another layer shares. MNEME_STATUS_INVALID_ARGUMENT: layers without global attention among `layers` */
MNEME_API mneme_status mneme_llama_create(const struct llama_model* model, const mneme_llama_options* options,
                                          mneme_llama** adapter);
/** Gives an adapter back, after the context is freed. The memories stay the caller's.
 * @param adapter  may be NULL */
MNEME_API void mneme_llama_release(mneme_llama* adapter);

/** What memories of this model and these layers are made by.
 * @param adapter  NULL gives NULL
 * @return the adapter's own, valid until it is released */
MNEME_API const mneme_card* mneme_llama_get_card(const mneme_llama* adapter);

/** The layers that have a memory.
 * @param adapter  NULL: 0 is returned
 * @param layers   out, ascending, the adapter's own until it is released; NULL: not wanted
 * @return how many there are */
MNEME_API size_t mneme_llama_get_layers(const mneme_llama* adapter, const int32_t** layers);

/** Sets keys_rotated, pinned_tokens and max_tokens as this adapter wants them.
 * @param adapter  any
 * @param tokens   rows visible beyond a full window, at least the pinned ones; 0: unbounded
 * @param options  in and out; other fields are left as they are */
MNEME_API mneme_status mneme_llama_fill_memory_options(const mneme_llama* adapter, int64_t tokens,
                                                       mneme_memory_options* options);

/** Sets cb_eval and flash attention.
 * @param adapter  bound to no context yet
 * @param params   in and out, for llama_init_from_model
 * @return MNEME_STATUS_FAILED_PRECONDITION, with the reason: a callback already set, flash attention disabled, a
 * quantised cache (llama.cpp turns its keys by a Hadamard matrix), several sequences without a unified cache, rotary
 * settings other than the model's, room for less than twice the window */
MNEME_API mneme_status mneme_llama_prepare(mneme_llama* adapter, struct llama_context_params* params);
/** Gives the adapter its context.
 * @param adapter  prepared, bound to no context yet
 * @param ctx      made from the prepared parameters and this adapter's model; must not be freed before the last call
 * but mneme_llama_release */
MNEME_API mneme_status mneme_llama_bind(mneme_llama* adapter, struct llama_context* ctx);

/** Threads that compute for llama.cpp and for the engine in turn. Between two parts of a graph, which is when the
 * engine works, llama.cpp's threads look for work without a pause; an engine with threads of its own
 * (mneme_store_options.threads) has to share the cores with them. A store served by these has its tasks run by
 * llama.cpp's threads instead, with the same results bit for bit.
 *
 * Any thread may call the engine. While one decodes, or has them for a call of its own, the calls of others run on
 * their own thread alone; a decode waits for such a call's tasks. Contexts that share threads decode one at a time.
 * Where ggml was built with OpenMP, each thread that calls has its own set, as each that calls llama_decode has. */
typedef struct mneme_llama_threads mneme_llama_threads;
/** Makes a set of threads.
 * @param threads  how many, the calling one included; as n_threads of the contexts
 * @param pool     what the host attached to these with llama_attach_threadpool, which must then live on, or NULL. Not
 * used where ggml was built with OpenMP
 * @param made     out; given back by mneme_llama_threads_release */
MNEME_API mneme_status mneme_llama_threads_create(int32_t threads, struct ggml_threadpool* pool,
                                                  mneme_llama_threads** made);
/** Gives threads back, after the stores that they serve are closed and the contexts that share them are freed.
 * @param threads  may be NULL */
MNEME_API void mneme_llama_threads_release(mneme_llama_threads* threads);
/** Sets parallel_for, its context and its width: the engine's tasks of a store that is opened so run on these threads.
 * @param threads  must outlive the store
 * @param options  in and out; other fields are left as they are */
MNEME_API mneme_status mneme_llama_threads_fill_store_options(mneme_llama_threads* threads,
                                                              mneme_store_options* options);
/** Has decodes of the adapter take turns with the engine's tasks of other threads. Where ggml has no OpenMP and no
 * `pool` was given, this attaches one to the context.
 * @param adapter  bound to a context
 * @param threads  NULL: not any more */
MNEME_API mneme_status mneme_llama_set_threads(mneme_llama* adapter, mneme_llama_threads* threads);

/** What becomes of a sequence's tokens. */
typedef enum mneme_llama_mode {
  MNEME_LLAMA_MODE_APPEND = 0, /**< the sequence's tokens become part of the memory */
  MNEME_LLAMA_MODE_READ = 1    /**< the memory stays as it is; any number of sequences may read one */
} mneme_llama_mode;

/** Gives a sequence a memory from here on, or takes it away.
 * @param adapter   bound to a context
 * @param sequence  not in llama.cpp's cache (llama_memory_seq_rm)
 * @param memory    stays the caller's and must stay open until it is taken away or the adapter is released; NULL: the
 * sequence has none any more
 * @param mode      whether the sequence appends
 * @return MNEME_STATUS_FAILED_PRECONDITION for another model's memory, rotated keys where unrotated ones are needed and
 * the other way round, a memory that another sequence appends to */
MNEME_API mneme_status mneme_llama_set_memory(mneme_llama* adapter, llama_seq_id sequence, mneme_memory* memory,
                                              mneme_llama_mode mode);

/** Refills the local window after set_memory: decodes the memory's newest tokens once more (their ids are kept with the
 * rows), without appending them. Their rows of the memory become visible as they leave the window. What a reader
 * decodes after them is in no memory once it has left the window. Takes seconds; see mneme_llama_restore_window.
 * @param adapter   bound to a context
 * @param sequence  has a memory and an empty window
 * @param tokens    how many; fewer if the memory holds fewer in one piece, and at most twice the window
 * @param progress  called with tokens done and tokens in all; NULL: none
 * @param context   for `progress` */
MNEME_API mneme_status mneme_llama_resume(mneme_llama* adapter, llama_seq_id sequence, int64_t tokens,
                                          mneme_progress_fn progress, void* context);

/** Keeps the state of the sequence's local window (llama_state_seq_get_data) with its memory, as the attachment
 * "llama.cpp/window", so that a later process resumes without decoding. The next mneme_memory_commit makes it durable.
 * Its size is that of the window's part of llama.cpp's cache, so it is meant for the end of a turn or a run and not for
 * every commit.
 * @param adapter   bound to a context
 * @param sequence  appends to its memory */
MNEME_API mneme_status mneme_llama_save_window(mneme_llama* adapter, llama_seq_id sequence);

/** Refills the local window after set_memory from the state that mneme_llama_save_window has kept. The sequence goes on
 * as if it had never ended. After any error the window is empty as before, and mneme_llama_resume can fill it.
 * @param adapter   bound to a context
 * @param sequence  has a memory and an empty window
 * @return MNEME_STATUS_NOT_FOUND if none is kept; MNEME_STATUS_FAILED_PRECONDITION if it is not that of the memory's
 * newest token, or was made by another llama.cpp, with another cache type or a larger window; MNEME_STATUS_DATA_LOSS if
 * it is damaged */
MNEME_API mneme_status mneme_llama_restore_window(mneme_llama* adapter, llama_seq_id sequence);

/** Takes the sequence back to an earlier token, to generate an answer again or to edit a turn: the tokens from `tokens`
 * on are removed from its window and, if it appends, from its memory. What is left of the window stays; if nothing is,
 * mneme_llama_resume fills it. The logits of earlier decodes are not to be used.
 * @param adapter   bound to a context
 * @param sequence  has a memory
 * @param tokens    token index of the memory: 0 to where the sequence stands; of a reader, what it has decoded itself
 * and its window still holds
 * @return MNEME_STATUS_OUT_OF_RANGE; what mneme_memory_truncate returns, and then nothing has changed */
MNEME_API mneme_status mneme_llama_rewind(mneme_llama* adapter, llama_seq_id sequence, int64_t tokens);

/** llama_decode for the bound context.
 * @param adapter  bound to a context
 * @param batch    positions are the adapter's: batch.pos may be NULL, and must otherwise be what
 * mneme_llama_get_next_position says and on. A token may belong to several sequences only if none of them has a memory
 *
 * The first batch of which 8 or more neighbouring tokens begin a sequence's window checks the adapter itself: for each
 * chosen layer, attention over the captured rows of up to 32 tokens is computed in double precision and compared with
 * the model's own output. A layer that differs by more than 2 % of its largest value is refused.
 *
 * After any failure the batch is in neither the cache nor the memories, and logits are not to be used.
 *   MNEME_STATUS_RESOURCE_EXHAUSTED    no room in llama.cpp's cache, or a budget of the store
 *   MNEME_STATUS_FAILED_PRECONDITION   cache or memory were changed behind the adapter's back (positions shifted, rows
 * removed, appended by somebody else), or the graph is not the one that this adapter knows: the message names the layer
 * and what differs */
MNEME_API mneme_status mneme_llama_decode(mneme_llama* adapter, struct llama_batch batch);

/** The position that the sequence's next token gets.
 * @param adapter   any
 * @param sequence  of the bound context
 * @return 0 for a sequence without a memory */
MNEME_API llama_pos mneme_llama_get_next_position(const mneme_llama* adapter, llama_seq_id sequence);

/** Drops the sequence's oldest tokens from llama.cpp's cache. decode does this itself.
 * @param adapter   bound to a context
 * @param sequence  has a memory
 * @param keep      tokens that are left at most, 0 or more */
MNEME_API mneme_status mneme_llama_slide(mneme_llama* adapter, llama_seq_id sequence, int64_t keep);

/** Where an adapter's time goes. Microseconds. */
typedef struct mneme_llama_stats {
  size_t struct_size;
  int64_t tokens;            /**< decoded through the adapter */
  int64_t decode_us;         /**< in mneme_llama_decode, all in all */
  int64_t capture_us;        /**< of these: looking at the graph, copying queries, keys, values and masks */
  int64_t attend_us;         /**< of these: mneme_attend */
  int64_t append_us;         /**< of these: mneme_memory_append */
  int64_t checked_layers;    /**< whose captured rows gave the model's own attention (see mneme_llama_decode) */
  double largest_difference; /**< of these, as a share of the largest value of an output */
} mneme_llama_stats;
#define MNEME_LLAMA_STATS_INIT MNEME_STRUCT_INIT(mneme_llama_stats)
/** Sums since the adapter was created.
 * @param adapter  any
 * @param stats    out */
MNEME_API mneme_status mneme_llama_get_stats(const mneme_llama* adapter, mneme_llama_stats* stats);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* MNEME_LLAMA_H_ */
