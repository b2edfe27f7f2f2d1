# Included into llama.cpp's own configuration (scripts/fetch-llama): its 150 model files, which include the same large
# headers, are compiled some at a time. That takes a third of the processor time.
function(mneme_join_models)
  get_target_property(sources llama SOURCES)
  list(FILTER sources EXCLUDE REGEX "models/")
  set_source_files_properties(${sources} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  set_target_properties(llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
endfunction()
cmake_language(DEFER CALL mneme_join_models)
