"""RL fine-tuning: a reward in, a LoRA out, on the model that is loaded.

    prompts = Prompts.encode(clip, ["a cat", "two dogs"])                                  policy/prompts.py
    task = Task(model, vae, prompts, reward, width=512, height=512)                        task.py
    method = replace(FLOW_GRPO, groups=4)   # DIFFUSION_NFT, DDPO, B2_DIFFU_RL, REFL, draft_k(2), SRPO, …
    trainer = Trainer(task, method, Settings(rank=32, seed=0), checkpoint=path)            methods/, trainer.py
    for entry in trainer.iterate(until=100, report=show_share):
        entry.number, entry.reward, entry.spread, entry.kl, entry.clipped, …               iteration.py
        trainer.pictures(prompts, seed=1, tuned=True)                                      a preview, IMAGE
    trainer.save(folder)                                                                   the averaged LoRA

All of it may be called in the host's inference mode. Cancel (the host's InterruptProcessingException) and errors come
out of `iterate` with the trainer in the state after the last whole iteration; what was learned can be saved then, and a
trainer made with the same arguments goes on from the checkpoint. Several workers can make a run together (`team.py`).

An iteration, followed through `methods/`: `policy_gradient.PolicyLearner.iterate` draws pictures (`learner.py`,
`rollout.draw`), has them scored (`task.Task`), compares them (`advantages.py`) and adds up gradients (`losses.py`);
`trainer.Trainer` takes the optimiser's steps. `forward_process.ForwardLearner` does it with finished pictures alone,
`reward_gradient.RewardLearner` and `direct_align.DirectAlignLearner` for rewards that can be differentiated. The model
is called by `policy/`, with the LoRA attached.
"""
