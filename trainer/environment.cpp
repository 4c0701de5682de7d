#include "trainer/environment.h"

#include <sys/utsname.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "trainer/version.h"

namespace sluice {
namespace {

// The first value of a key of /proc/cpuinfo or /proc/meminfo; "" elsewhere.
std::string proc_value(const char* file, const std::string& key) {
  std::ifstream in(file);
  std::string line;
  while (std::getline(in, line)) {
    if (!line.starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t:", key.size());
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::string instruction_set() {
  if (__builtin_cpu_supports("avx512f") != 0) return "avx512";
  if (__builtin_cpu_supports("avx2") != 0) return "avx2";
  return "baseline";
}

}  // namespace

std::string environment_json(const RunEnvironment& run) {
  nlohmann::ordered_json json;
  json["sluice"] = version();
  json["commit"] = git_commit();
  json["compiler"] = __VERSION__;
  for (const auto& [name, value] : built_in()) json["built_in"][name] = value;
  utsname system{};
  if (::uname(&system) == 0) {
    json["host"] = system.nodename;
    json["system"] = std::string(system.sysname) + " " + system.release + " " + system.machine;
  }
  json["cpu"] = proc_value("/proc/cpuinfo", "model name");
  json["cores"] = std::thread::hardware_concurrency();
  json["instructions"] = instruction_set();
  json["memory"] = proc_value("/proc/meminfo", "MemTotal");
  json["device"] = run.device;
  json["world"] = run.world;
  json["threads"] = run.threads;
  json["mesh"] = run.mesh;
  json["arguments"] = run.arguments;
  json["started"] = int64_t(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now()));
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace sluice
