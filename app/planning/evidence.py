"""What recommendations rest on: who measured what."""

WITHOUT_REGRET = "LoRA Without Regret (Schulman et al., Thinking Machines, 2025)"
LEARNS_LESS = "LoRA Learns Less and Forgets Less (Biderman et al. 2024)"
QLORA = "QLoRA (Dettmers et al. 2023)"
LIMA = "LIMA: Less Is More for Alignment (Zhou et al. 2023)"
CAPACITY = f"{WITHOUT_REGRET}; Physics of Language Models, part 3.3 (Allen-Zhu and Li 2024)"
PEFT = "PEFT's method comparison, Llama-3.2-3B on GSM8K: full 47.2 %, LoRA r=32 47.8 %, rsLoRA r=64 51.3 %"
NEW_FACTS = "Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations? (Gekhman et al. 2024)"
RETRIEVAL = "Fine-Tuning or Retrieval? (Ovadia et al. 2023)"
DPO = "Direct Preference Optimization (Rafailov et al. 2023)"
KTO = "KTO: Model Alignment as Prospect Theoretic Optimization (Ethayarajh et al. 2024)"
ORPO = "ORPO: Monolithic Preference Optimization without Reference Model (Hong et al. 2024)"
SIMPO = "SimPO (Meng et al. 2024)"
GRPO = "DeepSeekMath, which introduced GRPO (Shao et al. 2024)"
DAPO = "DAPO (Yu et al. 2025) and Dr. GRPO (Liu et al. 2025)"
INSTRUCT_GPT = "InstructGPT (Ouyang et al. 2022)"
ZEPHYR = "Zephyr (Tunstall et al. 2023)"
RSLORA = "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski 2023)"
PROMPT_FIRST = "OpenAI's guide to fine-tuning, which advises to try prompts first"
STUDY = "the study that this service's recipes started from (7B, 1,000 examples)"
RECIPE = "this service's recipes"
FORMULA = "this service's memory formula"
SPEC = "the spec"
DEFINITION = "what full fine-tuning is"

RATES = {
    "supervised": STUDY,
    "continued_pretraining": STUDY,
    "dpo": ZEPHYR,
    "kto": "TRL's page on KTO",
    "orpo": ORPO,
    "simpo": SIMPO,
    "reward": INSTRUCT_GPT,
    "reinforcement": f"TRL's default for GRPO, and {GRPO}",
}
"""Where a method's rate of full fine-tuning comes from."""
