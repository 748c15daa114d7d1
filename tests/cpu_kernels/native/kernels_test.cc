// Runs the tests of the native kernels; arguments name the instruction sets that must have been found, and no others.
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "check.h"
#include "float_environment.h"
#include "probe.h"

namespace realm::test {
namespace {

// Calls that wait for each other would wait for ever; a CPU emulated or checked for races needs minutes at most.
constexpr unsigned kSecondsAtMost = 900;

constexpr int kPrintedFailures = 5;

int failures = 0;  // of the test that is running

}  // namespace

void Fail(const std::string& message) {
  if (++failures <= kPrintedFailures) std::printf("    %s\n", message.c_str());
}

std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

const std::vector<Set>& Sets() {
  static const std::vector<Set> sets = [] {
    struct Known {
      const char* name;
      InstructionSet set;
      const Probe* probe;
    };
    std::vector<Set> found;
    for (const Known& known :
         {Known{"portable", InstructionSet::kPortable, PortableProbe()},
          Known{"avx2", InstructionSet::kAvx2, Avx2Probe()}, Known{"avx_vnni", InstructionSet::kAvxVnni, Avx2Probe()},
          Known{"avx512_vnni", InstructionSet::kAvx512Vnni, Avx512VnniProbe()},
          Known{"amx", InstructionSet::kAmx, Avx512VnniProbe()},
          Known{"neon_dotprod", InstructionSet::kNeonDotprod, NeonDotprodProbe()}}) {
      const Kernels* kernels = FindKernels(known.set);
      if (kernels != nullptr) found.push_back({known.name, kernels, known.probe});
      if (known.set == InstructionSet::kAvx512Vnni && kernels != nullptr) {
        found.push_back({"emulated_amx", EmulatedAmxKernels(), known.probe});
      }
    }
    return found;
  }();
  return sets;
}

namespace {

int Run(const std::vector<std::string>& required) {
  std::vector<std::string> found;
  std::printf("instruction sets:");
  for (const Set& set : Sets()) {
    std::printf(" %s", set.name);
    found.emplace_back(set.name);
  }
  std::printf("\n");
  int failed = 0;
  if (!required.empty() && found != required) {
    std::printf("other instruction sets were asked for\n");
    ++failed;
  }
  for (const Test& test : Tests()) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    failures = 0;
    const FloatEnvironment environment;
    test.run();
    if (failures == 0) continue;
    std::printf("    FAILED, %d checks\n", failures);
    ++failed;
  }
  std::printf("%zu tests, %d failed\n", Tests().size(), failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace realm::test

int main(int argc, char** argv) {
  alarm(realm::test::kSecondsAtMost);
  return realm::test::Run({argv + 1, argv + argc});
}
