/* SPDX-License-Identifier: Apache-2.0 */
/* A stranger's C program, compiled with the installed header: what it may ask without a model. */
#include <stdio.h>
#include <string.h>

#include "mneme_llama.h"

int main(void) {
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  mneme_llama* adapter = NULL;
  mneme_llama_threads* threads = NULL;
  if (mneme_llama_create(NULL, &options, &adapter) != MNEME_STATUS_INVALID_ARGUMENT) return 1;
  if (strstr(mneme_llama_last_error(), "model: is NULL") == NULL) return 2;
  if (mneme_llama_threads_create(1, NULL, &threads) != MNEME_OK) return 3;
  mneme_llama_threads_release(threads);
  printf("mneme %s with llama.cpp\n", mneme_version());
  return 0;
}
