/* SPDX-License-Identifier: Apache-2.0 */
/* The numbers of the ABI on 64-bit machines: where each field of a struct lies and how many bytes it has, and the value
 * of each constant. A line that changes or goes breaks programs that are built already; a struct that grows gets one
 * line more and another size. Compiling this file is the test (docs/abi.md). */
#include "mneme.h"

#define FIELD(type, field, offset, bytes) \
  _Static_assert(offsetof(type, field) == (offset) && sizeof(((type*)NULL)->field) == (bytes), #type "." #field)
#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
#define CONSTANT(name, value) _Static_assert((name) == (value), #name)

FIELD(mneme_tensor, data, 0, 8);
FIELD(mneme_tensor, dtype, 8, 4);
FIELD(mneme_tensor, device_type, 12, 4);
FIELD(mneme_tensor, device_ordinal, 16, 4);
FIELD(mneme_tensor, ndim, 20, 4);
FIELD(mneme_tensor, shape, 24, 8);
FIELD(mneme_tensor, strides, 32, 8);
SIZE(mneme_tensor, 40);

FIELD(mneme_stream, handle, 0, 8);
SIZE(mneme_stream, 8);

FIELD(mneme_layer_desc, struct_size, 0, 8);
FIELD(mneme_layer_desc, layer, 8, 4);
FIELD(mneme_layer_desc, q_heads, 12, 4);
FIELD(mneme_layer_desc, kv_heads, 16, 4);
FIELD(mneme_layer_desc, key_dim, 20, 4);
FIELD(mneme_layer_desc, value_dim, 24, 4);
FIELD(mneme_layer_desc, scale, 28, 4);
FIELD(mneme_layer_desc, soft_cap, 32, 4);
FIELD(mneme_layer_desc, window, 36, 4);
FIELD(mneme_layer_desc, rotary_layout, 40, 4);
FIELD(mneme_layer_desc, rotary_pairs, 44, 4);
FIELD(mneme_layer_desc, rotary_inverse_frequencies, 48, 8);
FIELD(mneme_layer_desc, rotary_magnitude, 56, 4);
SIZE(mneme_layer_desc, 64);

FIELD(mneme_store_options, struct_size, 0, 8);
FIELD(mneme_store_options, mode, 8, 4);
FIELD(mneme_store_options, must_exist, 12, 4);
FIELD(mneme_store_options, threads, 16, 4);
FIELD(mneme_store_options, background, 20, 4);
FIELD(mneme_store_options, ignore_index_blobs, 24, 4);
FIELD(mneme_store_options, measure_latency, 28, 4);
FIELD(mneme_store_options, ram_budget_bytes, 32, 8);
FIELD(mneme_store_options, disk_budget_bytes, 40, 8);
FIELD(mneme_store_options, parallel_for, 48, 8);
FIELD(mneme_store_options, parallel_for_context, 56, 8);
FIELD(mneme_store_options, parallel_for_width, 64, 4);
FIELD(mneme_store_options, log, 72, 8);
FIELD(mneme_store_options, log_context, 80, 8);
FIELD(mneme_store_options, device_ordinal, 88, 4);
FIELD(mneme_store_options, device_budget_bytes, 96, 8);
SIZE(mneme_store_options, 104);

FIELD(mneme_store_verify_report, struct_size, 0, 8);
FIELD(mneme_store_verify_report, memories, 8, 8);
FIELD(mneme_store_verify_report, damaged_memories, 16, 8);
FIELD(mneme_store_verify_report, damaged_values, 24, 8);
FIELD(mneme_store_verify_report, damaged_indexes, 32, 8);
FIELD(mneme_store_verify_report, bytes_read, 40, 8);
SIZE(mneme_store_verify_report, 48);

FIELD(mneme_backup_info, struct_size, 0, 8);
FIELD(mneme_backup_info, id, 8, 8);
FIELD(mneme_backup_info, unix_seconds, 16, 8);
FIELD(mneme_backup_info, bytes, 24, 8);
FIELD(mneme_backup_info, files, 32, 8);
FIELD(mneme_backup_info, copied_bytes, 40, 8);
FIELD(mneme_backup_info, damaged, 48, 4);
SIZE(mneme_backup_info, 56);

FIELD(mneme_store_backup_args, struct_size, 0, 8);
FIELD(mneme_store_backup_args, folder, 8, 8);
FIELD(mneme_store_backup_args, keep, 16, 8);
FIELD(mneme_store_backup_args, progress, 24, 8);
FIELD(mneme_store_backup_args, context, 32, 8);
SIZE(mneme_store_backup_args, 40);

FIELD(mneme_store_restore_args, struct_size, 0, 8);
FIELD(mneme_store_restore_args, folder, 8, 8);
FIELD(mneme_store_restore_args, path, 16, 8);
FIELD(mneme_store_restore_args, backup, 24, 8);
FIELD(mneme_store_restore_args, progress, 32, 8);
FIELD(mneme_store_restore_args, context, 40, 8);
SIZE(mneme_store_restore_args, 48);

FIELD(mneme_store_stats, struct_size, 0, 8);
FIELD(mneme_store_stats, memories, 8, 8);
FIELD(mneme_store_stats, open_memories, 16, 8);
FIELD(mneme_store_stats, disk_bytes, 24, 8);
FIELD(mneme_store_stats, ram_bytes, 32, 8);
FIELD(mneme_store_stats, appended_bytes, 40, 8);
FIELD(mneme_store_stats, written_bytes, 48, 8);
FIELD(mneme_store_stats, indexes_built, 56, 8);
FIELD(mneme_store_stats, indexes_loaded, 64, 8);
FIELD(mneme_store_stats, indexes_rebuilt, 72, 8);
FIELD(mneme_store_stats, orphans_collected, 80, 8);
FIELD(mneme_store_stats, code_scanned_pairs, 88, 8);
FIELD(mneme_store_stats, key_scanned_pairs, 96, 8);
FIELD(mneme_store_stats, reranked_pairs, 104, 8);
FIELD(mneme_store_stats, rescanned_pairs, 112, 8);
FIELD(mneme_store_stats, codes_loaded, 120, 8);
FIELD(mneme_store_stats, codes_rebuilt, 128, 8);
FIELD(mneme_store_stats, rows_read, 136, 8);
FIELD(mneme_store_stats, device_bytes, 144, 8);
FIELD(mneme_store_stats, device_searched_sequences, 152, 8);
FIELD(mneme_store_stats, device_fallback_sequences, 160, 8);
FIELD(mneme_store_stats, device_copied_rows, 168, 8);
FIELD(mneme_store_stats, host_staged_calls, 176, 8);
SIZE(mneme_store_stats, 184);

FIELD(mneme_memory_export_args, struct_size, 0, 8);
FIELD(mneme_memory_export_args, path, 8, 8);
FIELD(mneme_memory_export_args, overwrite, 16, 4);
FIELD(mneme_memory_export_args, max_file_bytes, 24, 8);
FIELD(mneme_memory_export_args, progress, 32, 8);
FIELD(mneme_memory_export_args, context, 40, 8);
SIZE(mneme_memory_export_args, 48);

FIELD(mneme_memory_import_args, struct_size, 0, 8);
FIELD(mneme_memory_import_args, path, 8, 8);
FIELD(mneme_memory_import_args, name, 16, 8);
FIELD(mneme_memory_import_args, expected, 24, 8);
FIELD(mneme_memory_import_args, progress, 32, 8);
FIELD(mneme_memory_import_args, context, 40, 8);
SIZE(mneme_memory_import_args, 48);

FIELD(mneme_memory_options, struct_size, 0, 8);
FIELD(mneme_memory_options, stored_dtype, 8, 4);
FIELD(mneme_memory_options, normalise_keys, 12, 4);
FIELD(mneme_memory_options, keys_rotated, 16, 4);
FIELD(mneme_memory_options, max_tokens, 24, 8);
FIELD(mneme_memory_options, max_bytes, 32, 8);
FIELD(mneme_memory_options, pinned_tokens, 40, 8);
FIELD(mneme_memory_options, segment_tokens, 48, 8);
FIELD(mneme_memory_options, index, 56, 8);
SIZE(mneme_memory_options, 64);

FIELD(mneme_memory_info, struct_size, 0, 8);
FIELD(mneme_memory_info, next_token, 8, 8);
FIELD(mneme_memory_info, tokens, 16, 8);
FIELD(mneme_memory_info, tokens_durable, 24, 8);
FIELD(mneme_memory_info, first_kept, 32, 8);
FIELD(mneme_memory_info, pinned_tokens, 40, 8);
FIELD(mneme_memory_info, segments, 48, 8);
FIELD(mneme_memory_info, tail_tokens, 56, 8);
FIELD(mneme_memory_info, indexes, 64, 8);
FIELD(mneme_memory_info, bytes, 72, 8);
FIELD(mneme_memory_info, ram_bytes, 80, 8);
FIELD(mneme_memory_info, layers, 88, 4);
FIELD(mneme_memory_info, stored_dtype, 92, 4);
FIELD(mneme_memory_info, keys_rotated, 96, 4);
FIELD(mneme_memory_info, normalise_keys, 100, 4);
FIELD(mneme_memory_info, max_tokens, 104, 8);
FIELD(mneme_memory_info, segment_tokens, 112, 8);
FIELD(mneme_memory_info, model_name, 120, 256);
FIELD(mneme_memory_info, weights_fingerprint, 376, 256);
FIELD(mneme_memory_info, index, 632, 64);
FIELD(mneme_memory_info, attachment_bytes, 696, 8);
FIELD(mneme_memory_info, name, 704, 256);
SIZE(mneme_memory_info, 960);

FIELD(mneme_memory_append_args, struct_size, 0, 8);
FIELD(mneme_memory_append_args, layer, 8, 4);
FIELD(mneme_memory_append_args, keys, 16, 8);
FIELD(mneme_memory_append_args, values, 24, 8);
FIELD(mneme_memory_append_args, positions, 32, 8);
FIELD(mneme_memory_append_args, token_ids, 40, 8);
FIELD(mneme_memory_append_args, stream, 48, 8);
SIZE(mneme_memory_append_args, 56);

FIELD(mneme_memory_read_args, struct_size, 0, 8);
FIELD(mneme_memory_read_args, layer, 8, 4);
FIELD(mneme_memory_read_args, begin, 16, 8);
FIELD(mneme_memory_read_args, tokens, 24, 8);
FIELD(mneme_memory_read_args, keys, 32, 8);
FIELD(mneme_memory_read_args, values, 40, 8);
FIELD(mneme_memory_read_args, positions, 48, 8);
FIELD(mneme_memory_read_args, token_ids, 56, 8);
SIZE(mneme_memory_read_args, 64);

FIELD(mneme_attend_args, struct_size, 0, 8);
FIELD(mneme_attend_args, layer, 8, 4);
FIELD(mneme_attend_args, query, 16, 8);
FIELD(mneme_attend_args, memory_query, 24, 8);
FIELD(mneme_attend_args, query_offsets, 32, 8);
FIELD(mneme_attend_args, query_positions, 40, 8);
FIELD(mneme_attend_args, query_local_positions, 48, 8);
FIELD(mneme_attend_args, local_keys, 56, 8);
FIELD(mneme_attend_args, local_values, 64, 8);
FIELD(mneme_attend_args, local_offsets, 72, 8);
FIELD(mneme_attend_args, local_mask, 80, 4);
FIELD(mneme_attend_args, mask_offsets, 88, 8);
FIELD(mneme_attend_args, mask_window, 96, 8);
FIELD(mneme_attend_args, mask_bits, 104, 8);
FIELD(mneme_attend_args, mask_bits_stride, 112, 8);
FIELD(mneme_attend_args, snapshots, 120, 8);
FIELD(mneme_attend_args, memory_begin, 128, 8);
FIELD(mneme_attend_args, memory_end, 136, 8);
FIELD(mneme_attend_args, position_policy, 144, 4);
FIELD(mneme_attend_args, normalise_query, 148, 4);
FIELD(mneme_attend_args, fusion, 152, 4);
FIELD(mneme_attend_args, top_k, 160, 8);
FIELD(mneme_attend_args, distance, 168, 8);
FIELD(mneme_attend_args, memory_bias, 176, 8);
FIELD(mneme_attend_args, decay, 184, 8);
FIELD(mneme_attend_args, scale, 192, 8);
FIELD(mneme_attend_args, gate, 200, 8);
FIELD(mneme_attend_args, default_top_k, 208, 8);
FIELD(mneme_attend_args, default_distance, 216, 4);
FIELD(mneme_attend_args, decay_beyond, 220, 4);
FIELD(mneme_attend_args, output, 224, 8);
FIELD(mneme_attend_args, log_sum_exp, 232, 8);
FIELD(mneme_attend_args, retrieved_tokens, 240, 8);
FIELD(mneme_attend_args, retrieved_scores, 248, 8);
FIELD(mneme_attend_args, retrieved_stride, 256, 8);
FIELD(mneme_attend_args, memory_mass, 264, 8);
FIELD(mneme_attend_args, statuses, 272, 8);
FIELD(mneme_attend_args, stream, 280, 8);
FIELD(mneme_attend_args, graph, 288, 8);
SIZE(mneme_attend_args, 296);

FIELD(mneme_attend_backward_args, struct_size, 0, 8);
FIELD(mneme_attend_backward_args, attend, 8, 8);
FIELD(mneme_attend_backward_args, output_gradient, 16, 8);
FIELD(mneme_attend_backward_args, log_sum_exp_gradient, 24, 8);
FIELD(mneme_attend_backward_args, query_gradient, 32, 8);
FIELD(mneme_attend_backward_args, memory_query_gradient, 40, 8);
FIELD(mneme_attend_backward_args, local_keys_gradient, 48, 8);
FIELD(mneme_attend_backward_args, local_values_gradient, 56, 8);
FIELD(mneme_attend_backward_args, memory_bias_gradient, 64, 8);
FIELD(mneme_attend_backward_args, gate_gradient, 72, 8);
FIELD(mneme_attend_backward_args, scale_gradient, 80, 8);
SIZE(mneme_attend_backward_args, 88);

FIELD(mneme_search_args, struct_size, 0, 8);
FIELD(mneme_search_args, layer, 8, 4);
FIELD(mneme_search_args, query, 16, 8);
FIELD(mneme_search_args, query_offsets, 24, 8);
FIELD(mneme_search_args, query_positions, 32, 8);
FIELD(mneme_search_args, query_local_positions, 40, 8);
FIELD(mneme_search_args, snapshots, 48, 8);
FIELD(mneme_search_args, memory_begin, 56, 8);
FIELD(mneme_search_args, memory_end, 64, 8);
FIELD(mneme_search_args, position_policy, 72, 4);
FIELD(mneme_search_args, normalise_query, 76, 4);
FIELD(mneme_search_args, distance, 80, 8);
FIELD(mneme_search_args, decay, 88, 8);
FIELD(mneme_search_args, scale, 96, 8);
FIELD(mneme_search_args, default_distance, 104, 4);
FIELD(mneme_search_args, decay_beyond, 108, 4);
FIELD(mneme_search_args, top_k, 112, 8);
FIELD(mneme_search_args, tokens, 120, 8);
FIELD(mneme_search_args, scores, 128, 8);
FIELD(mneme_search_args, keys, 136, 8);
FIELD(mneme_search_args, values, 144, 8);
SIZE(mneme_search_args, 152);

FIELD(mneme_graph_update_args, struct_size, 0, 8);
FIELD(mneme_graph_update_args, memory_begin, 8, 8);
FIELD(mneme_graph_update_args, memory_end, 16, 8);
FIELD(mneme_graph_update_args, local_offsets, 24, 8);
FIELD(mneme_graph_update_args, query_positions, 32, 8);
FIELD(mneme_graph_update_args, stream, 40, 8);
SIZE(mneme_graph_update_args, 48);

FIELD(mneme_merge_args, struct_size, 0, 8);
FIELD(mneme_merge_args, a_output, 8, 8);
FIELD(mneme_merge_args, a_log_sum_exp, 16, 8);
FIELD(mneme_merge_args, b_output, 24, 8);
FIELD(mneme_merge_args, b_log_sum_exp, 32, 8);
FIELD(mneme_merge_args, gate, 40, 8);
FIELD(mneme_merge_args, output, 48, 8);
FIELD(mneme_merge_args, log_sum_exp, 56, 8);
SIZE(mneme_merge_args, 64);

CONSTANT(MNEME_OK, 0);
CONSTANT(MNEME_STATUS_CANCELLED, 1);
CONSTANT(MNEME_STATUS_INVALID_ARGUMENT, 3);
CONSTANT(MNEME_STATUS_NOT_FOUND, 5);
CONSTANT(MNEME_STATUS_ALREADY_EXISTS, 6);
CONSTANT(MNEME_STATUS_PERMISSION_DENIED, 7);
CONSTANT(MNEME_STATUS_RESOURCE_EXHAUSTED, 8);
CONSTANT(MNEME_STATUS_FAILED_PRECONDITION, 9);
CONSTANT(MNEME_STATUS_ABORTED, 10);
CONSTANT(MNEME_STATUS_OUT_OF_RANGE, 11);
CONSTANT(MNEME_STATUS_UNIMPLEMENTED, 12);
CONSTANT(MNEME_STATUS_INTERNAL, 13);
CONSTANT(MNEME_STATUS_UNAVAILABLE, 14);
CONSTANT(MNEME_STATUS_DATA_LOSS, 15);

CONSTANT(MNEME_CLASS_OK, 0);
CONSTANT(MNEME_CLASS_CALLER, 1);
CONSTANT(MNEME_CLASS_TRANSIENT, 2);
CONSTANT(MNEME_CLASS_DATA, 3);
CONSTANT(MNEME_CLASS_INTERNAL, 4);

CONSTANT(MNEME_DTYPE_DEFAULT, 0);
CONSTANT(MNEME_DTYPE_F32, 1);
CONSTANT(MNEME_DTYPE_F16, 2);
CONSTANT(MNEME_DTYPE_BF16, 3);
CONSTANT(MNEME_DTYPE_I8, 4);

CONSTANT(MNEME_DEVICE_CPU, 1);
CONSTANT(MNEME_DEVICE_CUDA, 2);

CONSTANT(MNEME_ROTARY_NONE, 0);
CONSTANT(MNEME_ROTARY_INTERLEAVED, 1);
CONSTANT(MNEME_ROTARY_HALVES, 2);

CONSTANT(MNEME_MODE_READ_WRITE, 0);
CONSTANT(MNEME_MODE_READ_ONLY, 1);
CONSTANT(MNEME_MODE_FOLLOW, 2);

CONSTANT(MNEME_LOG_WARNING, 1);

CONSTANT(MNEME_DURABILITY_BUFFERED, 0);
CONSTANT(MNEME_DURABILITY_SYNCED, 1);

CONSTANT(MNEME_POSITION_DEFAULT, 0);
CONSTANT(MNEME_POSITION_AS_STORED, 1);
CONSTANT(MNEME_POSITION_FIXED_DISTANCE, 2);
CONSTANT(MNEME_POSITION_WINDOW_START, 3);
CONSTANT(MNEME_POSITION_CLAMPED, 4);

CONSTANT(MNEME_FUSION_JOINT, 0);
CONSTANT(MNEME_FUSION_GATED, 1);
CONSTANT(MNEME_FUSION_MEMORY_ONLY, 2);
CONSTANT(MNEME_FUSION_LOCAL_ONLY, 3);

CONSTANT(MNEME_MASK_CAUSAL, 0);
CONSTANT(MNEME_MASK_SLIDING_WINDOW, 1);
CONSTANT(MNEME_MASK_NONE, 2);
CONSTANT(MNEME_MASK_BITS, 3);
