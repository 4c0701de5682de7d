# Writes OUTPUT, a header with the version and the commit that is being built. Runs at every build
# and rewrites only what changed. Without git or a repository the commit is unknown.
cmake_minimum_required(VERSION 3.25)
execute_process(
  COMMAND git -c safe.directory=* describe --always --dirty --abbrev=12 --exclude=*
  WORKING_DIRECTORY ${SOURCE_DIR}
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE result)
if(NOT result EQUAL 0 OR commit STREQUAL "")
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUTPUT} @ONLY CONTENT "#pragma once
namespace sluice {
inline constexpr const char* kVersion = \"@VERSION@\";
inline constexpr const char* kGitCommit = \"@commit@\";
}  // namespace sluice
")
